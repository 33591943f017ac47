//! The device mapper's ioctls, linux/dm-ioctl.h.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

/// The node of the device mapper; the kernel makes it in devtmpfs.
const CONTROL: &str = "/dev/mapper/control";
/// The version of the interface we speak: `DM_VERSION_MAJOR`, and no minor
/// feature.
const VERSION: [u32; 3] = [4, 0, 0];
/// `struct dm_ioctl`, in bytes.
const HEADER: usize = 312;
/// `struct dm_target_spec`, in bytes.
const TARGET: usize = 40;
/// Room for a table, and for the answer to a question about one.
const BUFFER: usize = 16 << 10;
/// Longest name and UUID, with the final NUL.
const NAME_LENGTH: usize = 128;
const UUID_LENGTH: usize = 129;
/// Longest target type, with the final NUL.
const TYPE_LENGTH: usize = 16;

/// Flags of the header.
const READ_ONLY: u32 = 1 << 0;
const PERSISTENT_DEV: u32 = 1 << 3;
const BUFFER_FULL: u32 = 1 << 8;

/// Offsets in the header.
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEV: usize = 40;
const NAME: usize = 48;
const UUID: usize = NAME + NAME_LENGTH;

/// Commands, by their number.
#[derive(Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    /// Without a flag it resumes.
    Suspend = 6,
    Load = 9,
    Status = 12,
}

impl Command {
    /// `_IOWR(0xfd, NUMBER, struct dm_ioctl)`.
    fn request(self) -> libc::c_ulong {
        3 << 30 | (HEADER as libc::c_ulong) << 16 | 0xfd << 8 | self as libc::c_ulong
    }
}

/// A line of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it starts, in sectors of 512 bytes.
    pub start: u64,
    /// In sectors.
    pub length: u64,
    /// Its type, such as `verity`.
    pub kind: String,
    /// What the type is told.
    pub parameters: String,
}

/// The device mapper.
#[derive(Debug)]
pub struct DeviceMapper(File);

impl DeviceMapper {
    /// Opens it.
    ///
    /// # Errors
    /// Those of open(2): `ENOENT` where the kernel has no device mapper.
    pub fn open() -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        Ok(Self(file))
    }

    /// Makes a device without a table; its minor number, which is `minor` if
    /// that is given.
    ///
    /// # Errors
    /// `InvalidInput` for a name or UUID that is too long or has a NUL;
    /// otherwise those of the ioctl: `EBUSY` if there is one of that name.
    pub fn create(&self, name: &str, uuid: &str, minor: Option<u32>) -> io::Result<u32> {
        let mut message = Message::new(name, uuid)?;
        if let Some(minor) = minor {
            message.put_u32(FLAGS, PERSISTENT_DEV);
            message.put_u64(DEV, encode_minor(minor));
        }
        self.call(Command::Create, &mut message)?;
        Ok(decode_minor(message.get_u64(DEV)))
    }

    /// Gives the device a table, which counts from the next [`resume`](Self::resume).
    ///
    /// # Errors
    /// `InvalidInput` for a table that is too long or has a NUL; otherwise those
    /// of the ioctl: what the target's type says of its parameters.
    pub fn load(&self, name: &str, targets: &[Target], read_only: bool) -> io::Result<()> {
        let mut message = Message::new(name, "")?;
        message.put_u32(FLAGS, if read_only { READ_ONLY } else { 0 });
        message.put_targets(targets)?;
        self.call(Command::Load, &mut message)
    }

    /// Lets the table count.
    ///
    /// # Errors
    /// Those of the ioctl.
    pub fn resume(&self, name: &str) -> io::Result<()> {
        self.call(Command::Suspend, &mut Message::new(name, "")?)
    }

    /// Removes the device.
    ///
    /// # Errors
    /// Those of the ioctl: `EBUSY` if it is open.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        self.call(Command::Remove, &mut Message::new(name, "")?)
    }

    /// What the device's first target says of itself: for `verity` a `V`, or a
    /// `C` once something was not what its digest says.
    ///
    /// # Errors
    /// Those of the ioctl, and `InvalidData` for an answer that is none.
    pub fn status(&self, name: &str) -> io::Result<String> {
        let mut message = Message::new(name, "")?;
        self.call(Command::Status, &mut message)?;
        message
            .first_status()
            .ok_or(io::ErrorKind::InvalidData.into())
    }

    fn call(&self, command: Command, message: &mut Message) -> io::Result<()> {
        // SAFETY: the request reads and writes the header and what follows it up
        // to the size that the header says, which is that of the buffer; the
        // buffer is aligned to eight bytes. (The request's type is int in musl
        // and unsigned long in glibc: the cast is one that changes no bit.)
        let result = unsafe {
            libc::ioctl(
                self.0.as_raw_fd(),
                command.request() as _,
                message.words.as_mut_ptr(),
            )
        };
        match result {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    }
}

/// Bits 0 to 7 and 20 to 31 hold the minor number, the rest the major, which
/// the kernel knows.
fn encode_minor(minor: u32) -> u64 {
    u64::from(minor & 0xff) | u64::from(minor & !0xff) << 12
}

fn decode_minor(device: u64) -> u32 {
    (device & 0xff | device >> 12 & 0xf_ff00) as u32
}

/// A header and what belongs to it, aligned as the kernel wants it.
struct Message {
    words: Vec<u64>,
}

impl Message {
    fn new(name: &str, uuid: &str) -> io::Result<Self> {
        let mut message = Self {
            words: vec![0; BUFFER / 8],
        };
        for (at, number) in (0..).step_by(4).zip(VERSION) {
            message.put_u32(at, number);
        }
        message.put_u32(DATA_SIZE, BUFFER as u32);
        message.put_u32(DATA_START, HEADER as u32);
        message.put_text(NAME, name, NAME_LENGTH)?;
        message.put_text(UUID, uuid, UUID_LENGTH)?;
        Ok(message)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            let shift = at % 8 * 8;
            let word = &mut self.words[at / 8];
            // The buffer in memory is what counts: little-endian or not.
            let mut whole = word.to_ne_bytes();
            whole[shift / 8] = *byte;
            *word = u64::from_ne_bytes(whole);
        }
    }

    fn get(&self, at: usize) -> u8 {
        self.words[at / 8].to_ne_bytes()[at % 8]
    }

    fn put_u32(&mut self, at: usize, number: u32) {
        self.put(at, &number.to_ne_bytes());
    }

    fn put_u64(&mut self, at: usize, number: u64) {
        self.put(at, &number.to_ne_bytes());
    }

    fn get_u32(&self, at: usize) -> u32 {
        u32::from_ne_bytes(std::array::from_fn(|byte| self.get(at + byte)))
    }

    fn get_u64(&self, at: usize) -> u64 {
        u64::from_ne_bytes(std::array::from_fn(|byte| self.get(at + byte)))
    }

    fn put_text(&mut self, at: usize, text: &str, room: usize) -> io::Result<()> {
        if text.len() >= room || text.contains('\0') {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.put(at, text.as_bytes());
        Ok(())
    }

    fn put_targets(&mut self, targets: &[Target]) -> io::Result<()> {
        let mut at = HEADER;
        for target in targets {
            let size = (TARGET + target.parameters.len() + 1).next_multiple_of(8);
            if at + size > BUFFER {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            self.put_u64(at, target.start);
            self.put_u64(at + 8, target.length);
            self.put_u32(at + 20, size as u32);
            self.put_text(at + 24, &target.kind, TYPE_LENGTH)?;
            self.put_text(at + TARGET, &target.parameters, size - TARGET)?;
            at += size;
        }
        let count = u32::try_from(targets.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.put_u32(TARGET_COUNT, count);
        Ok(())
    }

    fn first_status(&self) -> Option<String> {
        let start = self.get_u32(DATA_START) as usize + TARGET;
        if self.get_u32(TARGET_COUNT) == 0 || self.get_u32(FLAGS) & BUFFER_FULL != 0 {
            return None;
        }
        let bytes: Vec<u8> = (start..BUFFER)
            .map(|at| self.get(at))
            .take_while(|&byte| byte != 0)
            .collect();
        String::from_utf8(bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(parameters: &str) -> Target {
        Target {
            start: 0,
            length: 8,
            kind: "zero".into(),
            parameters: parameters.into(),
        }
    }

    #[test]
    fn a_minor_number_is_read_as_it_was_written() {
        for minor in [0, 1, 255, 256, 0xf_ffff] {
            assert_eq!(decode_minor(encode_minor(minor)), minor);
            // With a major number in it, as the kernel answers.
            assert_eq!(decode_minor(encode_minor(minor) | 254 << 8), minor);
        }
    }

    #[test]
    fn requests_have_the_numbers_of_the_header_file() {
        assert_eq!(Command::Create.request(), 0xc138_fd03);
        assert_eq!(Command::Status.request(), 0xc138_fd0c);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(Message::new(&"n".repeat(127), "").is_ok());
        assert!(Message::new(&"n".repeat(128), "").is_err());
        assert!(Message::new("n\0", "").is_err());
        let mut message = Message::new("n", "").unwrap();
        assert!(message.put_targets(&[target("x"), target("")]).is_ok());
        assert!(message.put_targets(&[target(&"x".repeat(BUFFER))]).is_err());
        assert!(message.put_targets(&vec![target("x"); 1000]).is_err());
    }

    #[test]
    fn targets_follow_each_other_aligned() {
        let mut message = Message::new("n", "").unwrap();
        message.put_targets(&[target("abc"), target("d")]).unwrap();
        assert_eq!(message.get_u32(TARGET_COUNT), 2);
        let next = message.get_u32(HEADER + 20) as usize;
        assert_eq!(next, 48);
        assert_eq!(message.get(HEADER + TARGET + 2), b'c');
        assert_eq!(message.get(HEADER + next + TARGET), b'd');
        assert_eq!(message.first_status().as_deref(), Some("abc"));
    }
}
