//! Console device with one port.
//!
//! Problem: a console for guests that have no UART driver, or want one that isn't a byte at a time, and
//! one that knows the size of the window. Scheme: the worker copies transmitted buffers to the host's
//! sink, and queued host input into receive buffers as the driver provides them; [`ConsoleHandle`] is
//! the host's end. Linux reads the size only on a configuration change, so each start of the driver
//! brings one. Invariants: bytes keep their order; input is taken from the queue only once there is a
//! buffer for it; a sink that fails is reported once and then forgets everything. Worker thread; the
//! handle from any thread.
//!
//! Source: VIRTIO 1.2, §5.3 "Console Device".

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use vm_memory::GuestAddressSpace;

use super::{Active, Chain, Doorbell, Events, Malformed, Service, VirtQueue, VirtioDevice};
use crate::clock::lock;

const QUEUE_SIZE: u16 = 256;
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// The configuration has a size. (Bit 1 would be several ports, bit 2 emergency writes.)
const F_SIZE: u32 = 0;
/// Bytes moved between guest and host at a time.
const PIECE: usize = 4096;

/// Columns and rows; zeroes if not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    columns: u16,
    rows: u16,
    /// Counts changes.
    generation: u8,
}

#[derive(Default)]
struct Shared {
    input: Mutex<VecDeque<u8>>,
    size: Mutex<Size>,
    doorbell: Arc<Doorbell>,
    has_driver: AtomicBool,
}

/// Where transmitted bytes go.
type Sink = Arc<Mutex<Output>>;

struct Output {
    sink: Box<dyn Write + Send>,
    broken: bool,
}

impl Output {
    fn write(&mut self, bytes: &[u8]) {
        if !self.broken
            && let Err(error) = self.sink.write_all(bytes).and_then(|()| self.sink.flush())
        {
            tracing::warn!("virtio-console: output is lost from now on: {error}");
            self.broken = true;
        }
    }
}

/// A console.
pub struct Console {
    shared: Arc<Shared>,
    output: Sink,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("size", &*lock(&self.shared.size)).finish_non_exhaustive()
    }
}

/// The host's end of a console. Cheap to clone; outlives its console (then it swallows).
#[derive(Clone)]
pub struct ConsoleHandle(Weak<Shared>);

impl std::fmt::Debug for ConsoleHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleHandle").field("pending", &self.pending()).finish()
    }
}

impl ConsoleHandle {
    /// Sends bytes to the guest, after all that was sent before. Never waits; who copies from an
    /// endless source looks at [`ConsoleHandle::pending`].
    pub fn send(&self, bytes: &[u8]) {
        if let Some(shared) = self.0.upgrade() {
            lock(&shared.input).extend(bytes);
            shared.doorbell.ring(Events::INPUT);
        }
    }

    /// A driver has started the console, and hasn't reset it.
    #[must_use]
    pub fn has_driver(&self) -> bool {
        self.0.upgrade().is_some_and(|shared| shared.has_driver.load(Ordering::Relaxed))
    }

    /// Bytes that the guest has not yet taken.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.0.upgrade().map_or(0, |shared| lock(&shared.input).len())
    }

    /// Tells the guest the window's size.
    pub fn set_size(&self, columns: u16, rows: u16) {
        if let Some(shared) = self.0.upgrade() {
            let mut size = lock(&shared.size);
            if (size.columns, size.rows) != (columns, rows) {
                let generation = size.generation.wrapping_add(1);
                *size = Size { columns, rows, generation };
                shared.doorbell.ring(Events::CONFIG);
            }
        }
    }
}

impl Console {
    /// A console that transmits to `sink`. The sink should not block for long: a reset waits for it.
    #[must_use]
    pub fn new(sink: Box<dyn Write + Send>) -> (Self, ConsoleHandle) {
        let shared = Arc::<Shared>::default();
        let handle = ConsoleHandle(Arc::downgrade(&shared));
        let output = Arc::new(Mutex::new(Output { sink, broken: false }));
        (Self { shared, output }, handle)
    }
}

impl<M: GuestAddressSpace + Send + 'static> VirtioDevice<M> for Console {
    fn id(&self) -> u16 {
        3
    }

    fn class(&self) -> u32 {
        0x07_8000
    }

    fn name(&self) -> &'static str {
        "console"
    }

    fn features(&self) -> u64 {
        1 << F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        let size = *lock(&self.shared.size);
        // struct virtio_console_config: cols, rows, max_nr_ports, emerg_wr.
        let mut config = vec![0; 12];
        config[0..2].copy_from_slice(&size.columns.to_le_bytes());
        config[2..4].copy_from_slice(&size.rows.to_le_bytes());
        config[4] = 1;
        config
    }

    fn config_generation(&self) -> u8 {
        lock(&self.shared.size).generation
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.shared.doorbell
    }

    fn serve(&mut self, mut active: Active<M>) -> Service {
        let mut receive = active.take(RECEIVE.into());
        let mut transmit = active.take(TRANSMIT.into());
        let shared = Arc::clone(&self.shared);
        let output = Arc::clone(&self.output);
        Service::by(move || {
            shared.has_driver.store(true, Ordering::Relaxed);
            active.serve(|active, events| {
                if events.contains(Events::CONFIG) && active.has(F_SIZE) {
                    active.signals.config_changed();
                }
                let wanted =
                    events.contains(Events::INPUT) || events.contains(Events::queue(RECEIVE));
                if wanted && let Some(queue) = &mut receive {
                    pour_in(active, queue, &shared.input)?;
                }
                if events.contains(Events::queue(TRANSMIT))
                    && let Some(queue) = &mut transmit
                {
                    active.drain(queue, |chain| pour_out(chain, &output, &active.doorbell))?;
                }
                Ok(())
            });
            shared.has_driver.store(false, Ordering::Relaxed);
        })
    }
}

/// Fills receive buffers while there are both buffers and input.
fn pour_in<M: GuestAddressSpace>(
    active: &Active<M>,
    queue: &mut VirtQueue<M>,
    input: &Mutex<VecDeque<u8>>,
) -> Result<(), Malformed> {
    let mut bytes = [0; PIECE];
    while !active.doorbell.stopped() {
        if lock(input).is_empty() {
            // The next input wakes us; the next buffer needn't.
            return queue.disable_notification();
        }
        let Some(mut chain) = queue.pop()? else {
            if queue.enable_notification()? {
                continue;
            }
            return Ok(());
        };
        let room = usize::try_from(chain.writable()).unwrap_or(PIECE).min(PIECE);
        // Only this thread takes from the queue, so what was there still is.
        let len = {
            let mut input = lock(input);
            let len = room.min(input.len());
            for (to, from) in bytes.iter_mut().zip(input.drain(..len)) {
                *to = from;
            }
            len
        };
        let written = chain.write(&bytes[..len])?;
        queue.push_used(&chain, u32::try_from(written).unwrap_or(u32::MAX))?;
        if queue.needs_interrupt()? {
            active.signals.queue(queue.index());
        }
    }
    Ok(())
}

/// Copies one transmitted buffer to the host.
fn pour_out<M: GuestAddressSpace>(
    chain: &mut Chain<M>,
    output: &Sink,
    doorbell: &Doorbell,
) -> Result<u32, Malformed> {
    let mut bytes = [0; PIECE];
    let mut output = lock(output);
    while !doorbell.stopped() {
        let len = chain.read(&mut bytes)?;
        if len == 0 {
            break;
        }
        output.write(&bytes[..len]);
    }
    Ok(0)
}
