//! The network: what a person may write behind `--net`.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;
use xenolith_devices::net::Mac;
use xenolith_machine::{NetConfig, NetModel, NetSettings};

/// Where Debian's package ipxe-qemu has the card's ROM.
fn ipxe(model: NetModel) -> &'static Path {
    Path::new(match model {
        NetModel::Virtio => "/usr/lib/ipxe/qemu/pxe-virtio.rom",
        NetModel::E1000 => "/usr/lib/ipxe/qemu/pxe-e1000.rom",
    })
}

#[derive(Args, Debug)]
pub struct NetFlags {
    /// The guest's network: user (this program's own, without privileges: addresses by DHCP, names, TCP and UDP
    /// out; this computer is 10.0.2.2, the guest 10.0.2.15) or none (no card). Behind user:
    /// hostfwd=tcp:ADDR:PORT-:PORT leads a port of this computer to one of the guest (or udp; may be
    /// given again); model=virtio|e1000 is the card [default: e1000 for firmware, else virtio]; mac=ADDR;
    /// restrict=on keeps the guest in, but for forwards; tftp=FOLDER gives its files to guests that
    /// boot from the network and bootfile=NAME names one; romfile=FILE is what firmware starts the card by
    /// [default: Debian's package ipxe-qemu's]; dump=FILE records all frames for tcpdump and
    /// Wireshark. With --icount the default is none
    #[arg(long = "net", value_name = "user[,OPTION=VALUE...]|none", help_heading = "Machine")]
    pub net: Option<Net>,
}

/// What was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Net {
    None,
    User(Box<User>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    model: Option<NetModel>,
    mac: Mac,
    /// Empty: none.
    rom: Option<PathBuf>,
    settings: NetSettings,
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split(',');
        match (words.next(), words.clone().next()) {
            (Some("user"), _) => {}
            (Some("none"), None) => return Ok(Self::None),
            _ => return Err("it is user, with options behind commas, or none".to_owned()),
        }
        let mut user = User::default();
        for word in words {
            let (key, value) =
                word.split_once('=').ok_or_else(|| format!("{word:?} is not OPTION=VALUE"))?;
            let file = || match value {
                "" => Err(format!("a name must follow {key}=")),
                value => Ok(PathBuf::from(value)),
            };
            let settings = &mut user.settings;
            match key {
                "hostfwd" => settings.forwards.push(value.parse()?),
                "model" => {
                    user.model = Some(match value {
                        "virtio" | "virtio-net-pci" => NetModel::Virtio,
                        "e1000" => NetModel::E1000,
                        _ => return Err(format!("model {value:?} is neither virtio nor e1000")),
                    });
                }
                "mac" => user.mac = value.parse().map_err(str::to_owned)?,
                "restrict" => {
                    settings.restrict = match value {
                        "on" | "yes" | "y" => true,
                        "off" | "no" | "n" => false,
                        _ => return Err(format!("restrict={value}: it is on or off")),
                    };
                }
                "tftp" => settings.tftp = Some(file()?),
                "bootfile" => settings.bootfile = Some(value.to_owned()),
                "dump" => settings.dump = Some(file()?),
                "romfile" => user.rom = Some(value.into()),
                _ => {
                    return Err(format!(
                        "no option {key:?}: there are hostfwd, model, mac, restrict, tftp, bootfile, \
                         romfile and dump"
                    ));
                }
            }
        }
        Ok(Self::User(Box::new(user)))
    }
}

impl NetFlags {
    /// The card and its network for a machine that starts by firmware, or not.
    ///
    /// # Errors
    /// A ROM for what has none.
    pub fn config(&self, firmware: bool, icount: bool) -> Result<Option<NetConfig>> {
        let user = match &self.net {
            // What comes from outside isn't the same every time.
            None if icount => return Ok(None),
            None => User::default(),
            Some(Net::None) => return Ok(None),
            Some(Net::User(user)) => (**user).clone(),
        };
        let usual = if firmware { NetModel::E1000 } else { NetModel::Virtio };
        let model = user.model.unwrap_or(usual);
        let rom = match user.rom {
            Some(path) if path.as_os_str().is_empty() => None,
            Some(_) if !firmware => bail!("--net user: romfile= goes with firmware"),
            Some(path) => Some(path),
            None => {
                let usual = ipxe(model);
                (firmware && usual.is_file()).then(|| usual.to_owned())
            }
        };
        Ok(Some(NetConfig { model, mac: user.mac, rom, settings: user.settings }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: Option<&str>, firmware: bool) -> Option<NetConfig> {
        let net = text.map(|text| text.parse().expect("sound"));
        NetFlags { net }.config(firmware, false).expect("sound")
    }

    #[test]
    fn there_is_a_network_unless_told_otherwise() {
        let usual = config(None, false).expect("a card");
        assert_eq!((usual.model, usual.rom), (NetModel::Virtio, None));
        assert_eq!(usual.mac, Mac::default());
        assert_eq!(config(Some("user"), true).expect("a card").model, NetModel::E1000);
        assert_eq!(config(Some("user,model=virtio,romfile="), true).expect("a card").rom, None);
        assert_eq!(config(Some("none"), true), None);
        assert_eq!(NetFlags { net: None }.config(true, true).expect("sound"), None);
    }

    #[test]
    fn options_are_read() {
        let all = "user,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-:53,mac=52:54:00:0:0:1,\
                   restrict=on,tftp=/srv,bootfile=x.ipxe,dump=a.pcap,romfile=,model=e1000";
        let config = config(Some(all), true).expect("a card");
        assert_eq!(config.settings.forwards.len(), 2);
        assert_eq!(config.settings.forwards[0].to_string(), "tcp:127.0.0.1:2222-10.0.2.15:22");
        assert_eq!(config.mac.to_string(), "52:54:00:00:00:01");
        assert!(config.settings.restrict && config.rom.is_none());
        assert_eq!(config.settings.tftp, Some(PathBuf::from("/srv")));
        assert_eq!(config.settings.dump, Some(PathBuf::from("a.pcap")));
        assert_eq!(config.settings.bootfile.as_deref(), Some("x.ipxe"));
        for bad in [
            "",
            "tap",
            "none,model=e1000",
            "user,",
            "user,restrict",
            "user,restrict=maybe",
            "user,model=ne2000",
            "user,mac=1:2",
            "user,tftp=",
            "user,hostfwd=tcp:2222",
            "user,frob=1",
        ] {
            assert!(bad.parse::<Net>().is_err(), "{bad}");
        }
        let flags = NetFlags { net: "user,romfile=x".parse().ok() };
        assert!(flags.config(false, false).is_err());
    }
}
