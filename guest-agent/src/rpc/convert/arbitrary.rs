//! Messages made of every field there is, with the words that fields are
//! looked at for. The fuzzer (tests/fuzz) makes its messages here as well.

use protobuf::MessageDyn;
use protobuf::reflect::{MessageDescriptor, ReflectValueBox, RuntimeFieldType, RuntimeType};

/// What fields are looked at for.
pub(crate) const WORDS: [&str; 45] = [
    "",
    "/",
    "/data",
    "relative",
    "/a/../b",
    "name",
    "sh",
    "NAME=VALUE",
    "a\0b",
    "c",
    "b",
    "p",
    "a",
    "rwm",
    "CAP_CHOWN",
    "RLIMIT_NOFILE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_NOTIFY",
    "SCMP_ARCH_X86",
    "SCMP_CMP_MASKED_EQ",
    "SECCOMP_FILTER_FLAG_LOG",
    "openat",
    "net.ipv4.ip_forward",
    "kernel.shmmax",
    "pid",
    "mount",
    "uts",
    "user",
    "time",
    "tmpfs",
    "bind",
    "rbind",
    "rro",
    "rshared",
    "ridmap",
    "tmpcopyup",
    "{\"mounts\":[{\"destination\":\"/data\",\"uidMappings\":[],\"gidMappings\":[]}]}",
    "2MB",
    "dev.tardigrade.oci",
    "{\"process\":{\"user\":{\"umask\":18}}}",
    "{\"linux\":{\"resources\":{\"unified\":{\"memory.high\":\"1\"}}}}",
    "{\"linux\":{\"timeOffsets\":{\"boottime\":{\"secs\":1}}}}",
    "dev.tardigrade.after-thaw",
    "[[\"true\"]]",
];

/// Random numbers, as far as they go; then zeros.
struct Source {
    numbers: std::vec::IntoIter<u64>,
    /// How many of eight fields are there.
    density: usize,
}

impl Source {
    fn next(&mut self) -> u64 {
        self.numbers.next().unwrap_or(0)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    /// Numbers around which conversions turn, and any.
    fn number(&mut self) -> u64 {
        let chosen = [0, 1, u64::MAX, 1 << 31, 1 << 32, 1 << 63, u64::MAX - 1, 7];
        match self.below(2) {
            0 => chosen[self.below(chosen.len())],
            _ => self.next(),
        }
    }
}

fn value(kind: &RuntimeType, source: &mut Source, depth: usize) -> ReflectValueBox {
    let lower = |number: u64| u32::try_from(number & 0xffff_ffff).unwrap();
    match kind {
        RuntimeType::I32 => ReflectValueBox::I32(lower(source.number()).cast_signed()),
        RuntimeType::I64 => ReflectValueBox::I64(source.number().cast_signed()),
        RuntimeType::U32 => ReflectValueBox::U32(lower(source.number())),
        RuntimeType::U64 => ReflectValueBox::U64(source.number()),
        RuntimeType::F32 => ReflectValueBox::F32(0.5),
        RuntimeType::F64 => ReflectValueBox::F64(0.5),
        RuntimeType::Bool => ReflectValueBox::Bool(source.below(2) == 0),
        RuntimeType::String => ReflectValueBox::String(WORDS[source.below(WORDS.len())].into()),
        RuntimeType::VecU8 => ReflectValueBox::Bytes(source.next().to_be_bytes().into()),
        RuntimeType::Enum(descriptor) => {
            let number = lower(source.number()).cast_signed();
            ReflectValueBox::Enum(descriptor.clone(), number)
        }
        RuntimeType::Message(descriptor) => {
            ReflectValueBox::Message(message(descriptor, source, depth))
        }
    }
}

fn message(
    descriptor: &MessageDescriptor,
    source: &mut Source,
    depth: usize,
) -> Box<dyn MessageDyn> {
    let mut made = descriptor.new_instance();
    for field in descriptor.fields() {
        if depth == 0 || source.below(8) >= source.density {
            continue;
        }
        match field.runtime_field_type() {
            RuntimeFieldType::Singular(kind) => {
                let value = value(&kind, source, depth - 1);
                field.set_singular_field(&mut *made, value);
            }
            RuntimeFieldType::Repeated(kind) => {
                for _ in 0..source.below(3) {
                    let value = value(&kind, source, depth - 1);
                    field.mut_repeated(&mut *made).push(value);
                }
            }
            RuntimeFieldType::Map(key, kind) => {
                for _ in 0..source.below(4) {
                    let key = value(&key, source, 0);
                    let value = value(&kind, source, depth - 1);
                    field.mut_map(&mut *made).insert(key, value);
                }
            }
        }
    }
    made
}

/// A message of that type, made of random numbers.
pub(crate) fn message_of(descriptor: &MessageDescriptor, numbers: Vec<u64>) -> Box<dyn MessageDyn> {
    let mut source = Source {
        numbers: numbers.into_iter(),
        density: 0,
    };
    // What is there may end a conversion early, and so may what is missing.
    source.density = 1 + source.below(8);
    message(descriptor, &mut source, 8)
}
