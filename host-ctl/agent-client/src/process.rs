//! Calls about the processes of a container.

use std::time::Duration;

use protobuf::MessageField;
use protocols::wire::agent;

use crate::call::call;
use crate::client::AgentClient;
use crate::container::PATH;
use crate::error::ClientError;
use crate::reply;

/// Which process of which container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessName<'a> {
    /// The container.
    pub container_id: &'a str,
    /// The exec; none is the container's init process.
    pub exec_id: Option<&'a str>,
}

impl<'a> ProcessName<'a> {
    /// The init process of a container.
    #[must_use]
    pub fn init(container_id: &'a str) -> Self {
        Self {
            container_id,
            exec_id: None,
        }
    }

    /// An exec process of a container.
    #[must_use]
    pub fn exec(container_id: &'a str, exec_id: &'a str) -> Self {
        Self {
            container_id,
            exec_id: Some(exec_id),
        }
    }

    fn ids(self) -> (String, String) {
        // The init process goes by the container's own id on the wire.
        let exec_id = self.exec_id.unwrap_or(self.container_id);
        (self.container_id.to_owned(), exec_id.to_owned())
    }
}

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Stdout,
    Stderr,
}

impl AgentClient {
    /// Adds a process to a container: root in `/`, with a common PATH and no
    /// capability. Its streams are read and written by the calls here.
    ///
    /// # Errors
    /// Any [`ClientError`]; a command that cannot be executed is one.
    pub async fn exec_process(
        &self,
        process: ProcessName<'_>,
        args: &[&str],
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let (container_id, exec_id) = process.ids();
        let added = agent::Process {
            Args: args.iter().map(ToString::to_string).collect(),
            Env: vec![PATH.to_owned()],
            Cwd: "/".to_owned(),
            User: MessageField::some(agent::User::default()),
            ..Default::default()
        };
        let request = agent::ExecProcessRequest {
            container_id,
            exec_id,
            process: MessageField::some(added),
            ..Default::default()
        };
        call("ExecProcess", deadline, |context| {
            self.agent.exec_process(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Waits for the end of a process; gives its exit status as a shell counts
    /// it, 128 + signal for a death by signal. May be asked again.
    ///
    /// # Errors
    /// Any [`ClientError`]; `Deadline` if the process lives longer than that.
    pub async fn wait_process(
        &self,
        process: ProcessName<'_>,
        deadline: Duration,
    ) -> Result<i32, ClientError> {
        let (container_id, exec_id) = process.ids();
        let request = agent::WaitProcessRequest {
            container_id,
            exec_id,
            ..Default::default()
        };
        let answer = call("WaitProcess", deadline, |context| {
            self.agent.wait_process(context, &request)
        })
        .await?;
        Ok(answer.status)
    }

    /// Sends a signal (signal(7)).
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn signal_process(
        &self,
        process: ProcessName<'_>,
        signal: u32,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let (container_id, exec_id) = process.ids();
        let request = agent::SignalProcessRequest {
            container_id,
            exec_id,
            signal,
            ..Default::default()
        };
        call("SignalProcess", deadline, |context| {
            self.agent.signal_process(context, &request)
        })
        .await?;
        Ok(())
    }

    /// Reads at most `limit` bytes of a process's stdout, waiting until there
    /// are some; none at its end.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn read_stdout(
        &self,
        process: ProcessName<'_>,
        limit: u32,
        deadline: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        self.read(Output::Stdout, process, limit, deadline).await
    }

    /// Reads at most `limit` bytes of a process's stderr, waiting until there
    /// are some; none at its end.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn read_stderr(
        &self,
        process: ProcessName<'_>,
        limit: u32,
        deadline: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        self.read(Output::Stderr, process, limit, deadline).await
    }

    async fn read(
        &self,
        output: Output,
        process: ProcessName<'_>,
        limit: u32,
        deadline: Duration,
    ) -> Result<Vec<u8>, ClientError> {
        let (container_id, exec_id) = process.ids();
        let request = agent::ReadStreamRequest {
            container_id,
            exec_id,
            len: limit,
            ..Default::default()
        };
        let name = match output {
            Output::Stdout => "ReadStdout",
            Output::Stderr => "ReadStderr",
        };
        let answer = call(name, deadline, async |context| match output {
            Output::Stdout => self.agent.read_stdout(context, &request).await,
            Output::Stderr => self.agent.read_stderr(context, &request).await,
        })
        .await?;
        if answer.data.len() > usize::try_from(limit).unwrap_or(usize::MAX) {
            return Err(reply::malformed(name, "more bytes than were asked for"));
        }
        Ok(answer.data)
    }

    /// Writes to a process's stdin; gives how many bytes were taken.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn write_stdin(
        &self,
        process: ProcessName<'_>,
        data: &[u8],
        deadline: Duration,
    ) -> Result<usize, ClientError> {
        const CALL: &str = "WriteStdin";
        let (container_id, exec_id) = process.ids();
        let request = agent::WriteStreamRequest {
            container_id,
            exec_id,
            data: data.to_vec(),
            ..Default::default()
        };
        let answer = call(CALL, deadline, |context| {
            self.agent.write_stdin(context, &request)
        })
        .await?;
        usize::try_from(answer.len)
            .ok()
            .filter(|taken| *taken <= data.len())
            .ok_or_else(|| reply::malformed(CALL, "more bytes taken than were given"))
    }

    /// Ends a process's stdin.
    ///
    /// # Errors
    /// Any [`ClientError`].
    pub async fn close_stdin(
        &self,
        process: ProcessName<'_>,
        deadline: Duration,
    ) -> Result<(), ClientError> {
        let (container_id, exec_id) = process.ids();
        let request = agent::CloseStdinRequest {
            container_id,
            exec_id,
            ..Default::default()
        };
        call("CloseStdin", deadline, |context| {
            self.agent.close_stdin(context, &request)
        })
        .await?;
        Ok(())
    }
}
