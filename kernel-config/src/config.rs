//! A kernel's configuration file, as the kernel's build leaves it in
//! `.config` or `/boot/config-RELEASE`.

use flate2::read::GzDecoder;
use std::collections::BTreeMap;
use std::io::Read;
use std::str::FromStr;

/// The longest configuration that is read, in bytes. Those of distributions
/// are about 0.3 MB.
pub const MAX_CONFIG_BYTES: usize = 4 << 20;

/// The first bytes of a gzip file (RFC 1952, section 2.3.1).
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What an option is set to. An option that is not set has no setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `=y`
    BuiltIn,
    /// `=m`
    Module,
    /// A number or a string, as written.
    Value(String),
}

/// Why a text is no kernel configuration.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Longer than [`MAX_CONFIG_BYTES`].
    #[error("parse kernel configuration: more than {MAX_CONFIG_BYTES} bytes")]
    TooLarge,
    /// A line that is neither a setting nor a comment.
    #[error("parse kernel configuration: line {number} is neither CONFIG_NAME=value nor a comment")]
    Line {
        /// Counted from 1.
        number: usize,
    },
    /// An option that is set twice: which one counts is anybody's guess.
    #[error("parse kernel configuration: line {number} sets CONFIG_{option} again")]
    Redefined {
        /// Counted from 1.
        number: usize,
        /// Without `CONFIG_`.
        option: String,
    },
    /// No option at all is set.
    #[error("parse kernel configuration: it sets no option")]
    Empty,
    /// A damaged gzip file, or other bytes.
    #[error("parse kernel configuration: it is no text, nor packed text")]
    NotText,
}

/// The options that are set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelConfig(BTreeMap<String, Setting>);

impl KernelConfig {
    /// Reads a configuration from a file's bytes: text, or text that is packed
    /// with gzip, as a kernel with IKCONFIG_PROC hands it out.
    ///
    /// # Errors
    /// See [`ConfigError`]. Beyond [`MAX_CONFIG_BYTES`] nothing is unpacked.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut unpacked = Vec::new();
        let text = if bytes.starts_with(&GZIP_MAGIC) {
            GzDecoder::new(bytes)
                .take(MAX_CONFIG_BYTES as u64 + 1)
                .read_to_end(&mut unpacked)
                .map_err(|_| ConfigError::NotText)?;
            unpacked.as_slice()
        } else {
            bytes
        };
        std::str::from_utf8(text)
            .map_err(|_| ConfigError::NotText)?
            .parse()
    }

    /// The setting of an option, named without `CONFIG_`.
    #[must_use]
    pub fn get(&self, option: &str) -> Option<&Setting> {
        self.0.get(option)
    }
}

impl FromStr for KernelConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_CONFIG_BYTES {
            return Err(ConfigError::TooLarge);
        }
        let mut settings = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim_end();
            // "# CONFIG_X is not set" is a comment like any other.
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (option, setting) = parse_line(line).ok_or(ConfigError::Line { number })?;
            // An explicit "n" is only ever written by hand.
            let Some(setting) = setting else { continue };
            if settings.insert(option.to_owned(), setting).is_some() {
                return Err(ConfigError::Redefined {
                    number,
                    option: option.to_owned(),
                });
            }
        }
        if settings.is_empty() {
            return Err(ConfigError::Empty);
        }
        Ok(Self(settings))
    }
}

fn parse_line(line: &str) -> Option<(&str, Option<Setting>)> {
    let (option, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if option.is_empty() || !option.bytes().all(is_name) {
        return None;
    }
    let setting = match value {
        "y" => Some(Setting::BuiltIn),
        "m" => Some(Setting::Module),
        "n" => None,
        other => Some(Setting::Value(other.to_owned())),
    };
    Some((option, setting))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_configuration_is_read_packed_or_not_and_a_bomb_is_not() {
        use flate2::{Compression, write::GzEncoder};
        use std::io::Write;
        let pack = |bytes: &[u8]| {
            let mut packer = GzEncoder::new(Vec::new(), Compression::fast());
            packer.write_all(bytes).unwrap();
            packer.finish().unwrap()
        };
        let text = b"CONFIG_X=y\n";
        let plain = KernelConfig::from_bytes(text).unwrap();
        assert_eq!(plain.get("X"), Some(&Setting::BuiltIn));
        assert_eq!(KernelConfig::from_bytes(&pack(text)), Ok(plain));
        let bomb = pack(&vec![b'#'; MAX_CONFIG_BYTES + 1]);
        assert_eq!(KernelConfig::from_bytes(&bomb), Err(ConfigError::TooLarge));
        let cut = &pack(text)[..15];
        assert_eq!(KernelConfig::from_bytes(cut), Err(ConfigError::NotText));
        assert_eq!(KernelConfig::from_bytes(&[0xff]), Err(ConfigError::NotText));
    }

    #[test]
    fn settings_are_told_from_comments() {
        let text = "#\n# Automatically generated\n#\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\n\
                    CONFIG_D=0x10\nCONFIG_E=\"a=b # c\"\nCONFIG_F=n\n";
        let config: KernelConfig = text.parse().unwrap();
        assert_eq!(config.get("A"), Some(&Setting::BuiltIn));
        assert_eq!(config.get("B"), Some(&Setting::Module));
        assert_eq!(config.get("C"), None);
        assert_eq!(config.get("D"), Some(&Setting::Value("0x10".into())));
        assert_eq!(config.get("E"), Some(&Setting::Value("\"a=b # c\"".into())));
        assert_eq!(config.get("F"), None);
    }

    #[test]
    fn an_option_set_twice_is_an_error() {
        let error = "CONFIG_A=y\nCONFIG_A=m\n".parse::<KernelConfig>();
        let expected = ConfigError::Redefined {
            number: 2,
            option: "A".into(),
        };
        assert_eq!(error, Err(expected));
    }

    #[test]
    fn what_is_no_configuration_is_an_error() {
        for text in [
            "",
            "# only comments\n",
            "hello\n",
            "CONFIG_=y\n",
            "CONFIG_A B=y\n",
        ] {
            assert!(text.parse::<KernelConfig>().is_err(), "{text:?}");
        }
        let long = "#\n".repeat(MAX_CONFIG_BYTES);
        assert_eq!(long.parse::<KernelConfig>(), Err(ConfigError::TooLarge));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(CONFIG_|[A-Z_]{0,4}|=|y|m|\\PC|\n){0,40}") {
            let _ = text.parse::<KernelConfig>();
        }
    }
}
