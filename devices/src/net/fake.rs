//! A network for tests of cards: what the card sent, and what it is to get.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::NetBackend;
use crate::clock::lock;

#[derive(Default)]
struct State {
    sent: Vec<Vec<u8>>,
    waiting: VecDeque<Vec<u8>>,
    /// Frames that `ready` still allows; `None`: any number.
    room: Option<usize>,
    changed: Option<Arc<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
pub struct FakeNet(Mutex<State>);

impl FakeNet {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn sent(&self) -> Vec<Vec<u8>> {
        lock(&self.0).sent.clone()
    }

    /// What was sent since the last time.
    pub fn take_sent(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut lock(&self.0).sent)
    }

    pub fn waiting(&self) -> usize {
        lock(&self.0).waiting.len()
    }

    /// Sends a frame to the card.
    pub fn deliver(&self, frame: &[u8]) {
        lock(&self.0).waiting.push_back(frame.to_vec());
        self.tell();
    }

    pub fn set_room(&self, frames: Option<usize>) {
        lock(&self.0).room = frames;
        self.tell();
    }

    fn tell(&self) {
        let changed = lock(&self.0).changed.clone();
        if let Some(changed) = changed {
            changed();
        }
    }
}

impl NetBackend for FakeNet {
    fn takes_segments(&self) -> bool {
        true
    }

    fn ready(&self, _: usize) -> bool {
        lock(&self.0).room != Some(0)
    }

    fn send(&self, frame: &[u8]) {
        let mut state = lock(&self.0);
        assert_ne!(state.room, Some(0), "the card looks first");
        state.room = state.room.map(|room| room - 1);
        state.sent.push(frame.to_vec());
    }

    fn pending(&self) -> bool {
        !lock(&self.0).waiting.is_empty()
    }

    fn receive(&self) -> Option<Vec<u8>> {
        lock(&self.0).waiting.pop_front()
    }

    fn plug(&self, changed: Box<dyn Fn() + Send + Sync>) {
        lock(&self.0).changed = Some(changed.into());
    }
}
