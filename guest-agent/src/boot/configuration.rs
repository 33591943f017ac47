//! What the agent is told at its start: by the kernel command line inside a
//! VM, by arguments and environment on a development machine.
//!
//! The keys are those of the Kata agent; unknown `agent.` keys and words of
//! others (`systemd.*`, `console=`) are tolerated, a malformed value of a known
//! key is not.

use super::command_line::{last_value, words};
use super::memory_words::MemoryWords;
use protocols::{GuestAddress, VsockPeers};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a policy lies in the image, if there is one.
pub(crate) const DEFAULT_POLICY: &str = "/etc/kata-opa/default-policy.rego";

/// How the machine ends when the agent does, and the two ways.
const END: &str = "agent.end";
const RESET: &str = "reset";
const POWER_OFF: &str = "power-off";

/// A start-up value that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigurationError {
    #[error("{key}={value}: {reason}")]
    Value {
        key: &'static str,
        value: String,
        reason: String,
    },
    #[error("unknown argument {0}")]
    Argument(String),
    #[error("{0} needs a value")]
    MissingValue(&'static str),
}

/// The agent's settings, fixed for its life.
#[derive(Debug)]
pub(crate) struct Configuration {
    pub(crate) address: GuestAddress,
    /// Whose connections are taken, if that is a vsock address.
    pub(crate) vsock_peers: VsockPeers,
    pub(crate) log_level: slog::Level,
    /// `None`: [`DEFAULT_POLICY`] if it is there, else the built-in allow-all.
    pub(crate) policy_file: Option<PathBuf>,
    /// Whether this is the agent of a VM, which may change the machine.
    pub(crate) in_guest: bool,
    /// Outside a VM: the cgroup v2 directory that the workload lives below.
    /// `None`: one of its own, where it may make one.
    pub(crate) cgroup: Option<PathBuf>,
    /// Outside a VM: whether the network namespace was made for the agent,
    /// which may then change it.
    pub(crate) own_network: bool,
    /// Whether there is a memory agent, and what it goes by.
    pub(crate) memory: MemoryWords,
}

impl Configuration {
    fn with_address(in_guest: bool) -> Self {
        Self {
            address: GuestAddress::Vsock {
                port: protocols::port::RPC,
            },
            vsock_peers: VsockPeers::default(),
            log_level: slog::Level::Info,
            policy_file: None,
            in_guest,
            cgroup: None,
            own_network: false,
            memory: MemoryWords::default(),
        }
    }

    /// Reads the kernel command line. The environment is ignored: the kernel
    /// turns unknown words of an unmeasured command line into it.
    pub(crate) fn from_command_line(line: &str) -> Result<Self, ConfigurationError> {
        let mut configuration = Self::with_address(true);
        // The last word of a key wins, as with the kernel's own parameters.
        for word in words(line) {
            match word.split_once('=') {
                Some(("agent.server_addr", value)) => {
                    configuration.address = parse("agent.server_addr", value)?;
                }
                Some(("agent.vsock_peers", value)) => {
                    configuration.vsock_peers = parse("agent.vsock_peers", value)?;
                }
                // PID 1 goes by it: see `ends_by_reset`.
                Some((END, value)) if ![RESET, POWER_OFF].contains(&value) => {
                    return Err(ConfigurationError::Value {
                        key: END,
                        value: value.into(),
                        reason: format!("expected {RESET} or {POWER_OFF}"),
                    });
                }
                Some(("agent.log", value)) => {
                    configuration.log_level = log_level("agent.log", value)?;
                }
                Some((key, value)) => configuration.memory.take(key, value)?,
                None => {}
            }
        }
        Ok(configuration)
    }

    /// Reads `--server ADDRESS`, `--log LEVEL`, `--policy FILE`, `--cgroup
    /// DIRECTORY` and `--own-network`, and the KATA_AGENT_* variables where an
    /// argument is absent.
    pub(crate) fn from_arguments(
        arguments: impl IntoIterator<Item = String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigurationError> {
        let mut configuration = Self::with_address(false);
        if let Some(value) = variable("KATA_AGENT_SERVER_ADDR") {
            configuration.address = parse("KATA_AGENT_SERVER_ADDR", &value)?;
        }
        if let Some(value) = variable("KATA_AGENT_LOG_LEVEL") {
            configuration.log_level = log_level("KATA_AGENT_LOG_LEVEL", &value)?;
        }
        configuration.policy_file = variable("KATA_AGENT_POLICY_FILE").map(PathBuf::from);
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = |key| {
                arguments
                    .next()
                    .ok_or(ConfigurationError::MissingValue(key))
            };
            match argument.as_str() {
                "--server" => configuration.address = parse("--server", &value("--server")?)?,
                "--log" => configuration.log_level = log_level("--log", &value("--log")?)?,
                "--policy" => configuration.policy_file = Some(value("--policy")?.into()),
                "--cgroup" => configuration.cgroup = Some(value("--cgroup")?.into()),
                "--own-network" => configuration.own_network = true,
                _ => return Err(ConfigurationError::Argument(argument)),
            }
        }
        Ok(configuration)
    }
}

/// Whether the machine has no power switch and ends when it is reset, as
/// Firecracker's: there a guest that powers off stands still for ever.
pub(crate) fn ends_by_reset(line: &str) -> bool {
    last_value(line, END).as_deref() == Some(RESET)
}

fn parse<T>(key: &'static str, value: &str) -> Result<T, ConfigurationError>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    value
        .parse()
        .map_err(|error: T::Err| ConfigurationError::Value {
            key,
            value: value.into(),
            reason: error.to_string(),
        })
}

/// The level names of the Kata agent; `fatal` and `panic` are its words for
/// critical.
fn log_level(key: &'static str, value: &str) -> Result<slog::Level, ConfigurationError> {
    match value {
        "fatal" | "panic" | "critical" => Ok(slog::Level::Critical),
        "error" => Ok(slog::Level::Error),
        "warn" | "warning" => Ok(slog::Level::Warning),
        "info" => Ok(slog::Level::Info),
        "debug" => Ok(slog::Level::Debug),
        "trace" => Ok(slog::Level::Trace),
        _ => Err(ConfigurationError::Value {
            key,
            value: value.into(),
            reason: "not a log level".into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_words_and_unknown_agent_keys_are_tolerated() {
        let line = "console=ttyS0 systemd.unit=kata-containers.target agent.unknown=1 quiet";
        let configuration = Configuration::from_command_line(line).unwrap();
        assert!(configuration.in_guest);
        assert_eq!(configuration.log_level, slog::Level::Info);
    }

    #[test]
    fn the_last_value_of_a_key_counts() {
        let line = "agent.log=error agent.log=debug";
        let configuration = Configuration::from_command_line(line).unwrap();
        assert_eq!(configuration.log_level, slog::Level::Debug);
    }

    #[test]
    fn an_agent_that_is_told_so_takes_privileged_peers_only() {
        let line = "agent.server_addr=vsock://-1:1024";
        let configuration = Configuration::from_command_line(line).unwrap();
        assert_eq!(configuration.vsock_peers, VsockPeers::Host);
        let line = "agent.vsock_peers=privileged-host";
        let configuration = Configuration::from_command_line(line).unwrap();
        assert_eq!(configuration.vsock_peers, VsockPeers::PrivilegedHost);
        assert!(Configuration::from_command_line("agent.vsock_peers=all").is_err());
    }

    #[test]
    fn a_machine_is_powered_off_unless_told_otherwise() {
        assert!(!ends_by_reset("quiet panic=-1"));
        assert!(ends_by_reset("quiet agent.end=reset panic=-1"));
        assert!(!ends_by_reset("agent.end=reset agent.end=power-off"));
    }

    #[test]
    fn a_malformed_value_of_a_known_key_is_an_error() {
        assert!(Configuration::from_command_line("agent.log=loud").is_err());
        assert!(Configuration::from_command_line("agent.end=halt").is_err());
        assert!(Configuration::from_command_line("agent.end=reset").is_ok());
        assert!(Configuration::from_command_line("agent.server_addr=nowhere").is_err());
    }

    #[test]
    fn arguments_win_over_the_environment() {
        let variable = |name: &str| (name == "KATA_AGENT_LOG_LEVEL").then(|| String::from("error"));
        let arguments = ["--log", "trace"].map(String::from);
        let configuration = Configuration::from_arguments(arguments, variable).unwrap();
        assert_eq!(configuration.log_level, slog::Level::Trace);
        assert!(!configuration.in_guest);
    }

    #[test]
    fn the_environment_names_address_level_and_policy() {
        let variable = |name: &str| match name {
            "KATA_AGENT_SERVER_ADDR" => Some("unix://@agent".into()),
            "KATA_AGENT_LOG_LEVEL" => Some("debug".into()),
            "KATA_AGENT_POLICY_FILE" => Some("/etc/policy.rego".into()),
            _ => None,
        };
        let configuration = Configuration::from_arguments([], variable).unwrap();
        let path = PathBuf::from("@agent");
        assert_eq!(configuration.address, GuestAddress::Unix { path });
        assert_eq!(configuration.log_level, slog::Level::Debug);
        let policy = configuration.policy_file.unwrap();
        assert_eq!(policy.to_str(), Some("/etc/policy.rego"));
        assert!(!configuration.own_network);
    }

    #[test]
    fn an_argument_without_its_value_is_an_error() {
        assert!(Configuration::from_arguments([String::from("--server")], |_| None).is_err());
    }
}
