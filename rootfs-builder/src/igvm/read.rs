//! Reads an IGVM file, which may come from anywhere: every offset is held
//! against the file, and nothing takes more memory or time than its size
//! allows. The layout is that of the crate `igvm_defs`.

use igvm_defs as defs;
use igvm_defs::IgvmVariableHeaderType as Kind;
use igvm_defs::{IgvmPageDataType, IgvmPlatformType, PAGE_SIZE_4K};
use std::collections::BTreeMap;
use zerocopy::{FromBytes, Immutable, KnownLayout};

/// Where the checksum is in the fixed header.
const CHECKSUM: usize = 20;
/// Headers begin at multiples of this.
const ALIGNMENT: usize = 8;
/// The most pages of all parameters; each is measured, and says nothing.
const MAX_PARAMETER_PAGES: u64 = 1 << 16;

/// Why a file can't be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It does not begin as an IGVM file does.
    #[error("not an igvm file")]
    NotIgvm,
    /// One of another time or machine.
    #[error("its format is version {0}, or not for x86-64 with pages of 4096 bytes")]
    Version(u32),
    /// It is shorter or longer than it says.
    #[error("it has {found} bytes, and says that it has {said}")]
    Length {
        /// What it has.
        found: usize,
        /// What it says.
        said: u32,
    },
    /// Its headers were changed.
    #[error("its headers do not have the checksum that it says")]
    Checksum,
    /// A header ends after the headers do, or has not the length it should have.
    #[error("the header at byte {0} is cut short")]
    Short(usize),
    /// A header is of a kind that has to be understood, and is not.
    #[error("the header at byte {at} is of the unknown kind {kind:#x}")]
    Unknown {
        /// Where it is.
        at: usize,
        /// What it is.
        kind: u32,
    },
    /// A header points at what it can't mean.
    #[error("the header at byte {at}: {what}")]
    Invalid {
        /// Where it is.
        at: usize,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// One thing that a loader does, in the order in which it does them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Puts a page into the memory. Without bytes it is one of zeros.
    Page {
        /// Where.
        address: u64,
        /// What kind of page it is.
        kind: PageKind,
        /// What it has.
        bytes: Option<&'a [u8; 4096]>,
    },
    /// Puts pages there that the host has filled.
    Parameters {
        /// Where.
        address: u64,
        /// How many.
        pages: u64,
    },
    /// Sets a processor's state.
    Context {
        /// Which processor's.
        index: u16,
        /// Where it is to lie in memory, where it lies there.
        address: u64,
        /// As the platform has it.
        bytes: &'a [u8; 4096],
    },
}

/// What kind of page it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// Its bytes are measured.
    Measured,
    /// They are not.
    Unmeasured,
    /// The host sees it, and it is not measured at all.
    Shared,
    /// Has what the firmware writes.
    Secrets,
    /// Has the answers to CPUID.
    Cpuid,
}

/// What of a signed identity is of use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What must have been measured, or the guest is not started.
    pub measurement: [u8; 48],
    /// The security version number that reports will show.
    pub svn: u32,
    /// Whose signature it has.
    pub key: defs::IGVM_VHS_SNP_ID_BLOCK_PUBLIC_KEY,
}

/// What is done for one platform.
#[derive(Debug, PartialEq, Eq)]
pub struct Launch<'a> {
    /// Which.
    pub platform: IgvmPlatformType,
    /// What the guest's owner allows the host to do.
    pub policy: Option<u64>,
    /// In this order.
    pub steps: Vec<Step<'a>>,
    /// For SEV-SNP.
    pub identity: Option<Identity>,
}

/// A file whose checksum is right.
#[derive(Debug)]
pub struct File<'a> {
    bytes: &'a [u8],
    /// Where the headers are.
    headers: std::ops::Range<usize>,
    platforms: Vec<defs::IGVM_VHS_SUPPORTED_PLATFORM>,
}

/// A header.
struct Header<'a> {
    at: usize,
    kind: Kind,
    content: &'a [u8],
}

impl Header<'_> {
    fn read<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T, ReadError> {
        T::read_from_bytes(self.content).map_err(|_| ReadError::Short(self.at))
    }

    fn invalid(&self, what: &'static str) -> ReadError {
        ReadError::Invalid { at: self.at, what }
    }
}

impl<'a> File<'a> {
    /// Looks at the beginning of a file, and at the platforms it is for.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ReadError> {
        let fixed = defs::IGVM_FIXED_HEADER::read_from_prefix(bytes);
        let (fixed, _) = fixed.map_err(|_| ReadError::NotIgvm)?;
        if fixed.magic != defs::IGVM_MAGIC_VALUE {
            return Err(ReadError::NotIgvm);
        }
        let fixed_size = match fixed.format_version {
            defs::IGVM_FORMAT_VERSION_1 => size_of::<defs::IGVM_FIXED_HEADER>(),
            defs::IGVM_FORMAT_VERSION_2 => {
                let second = defs::IGVM_FIXED_HEADER_V2::read_from_prefix(bytes);
                let (second, _) = second.map_err(|_| ReadError::NotIgvm)?;
                let page = u64::from(second.page_size);
                if second.architecture != defs::IgvmArchitecture::X64 || page != PAGE_SIZE_4K {
                    return Err(ReadError::Version(fixed.format_version));
                }
                size_of::<defs::IGVM_FIXED_HEADER_V2>()
            }
            other => return Err(ReadError::Version(other)),
        };
        if fixed.total_file_size as usize != bytes.len() {
            return Err(ReadError::Length {
                found: bytes.len(),
                said: fixed.total_file_size,
            });
        }
        let start = fixed.variable_header_offset as usize;
        let size = fixed.variable_header_size as usize;
        let end = start.checked_add(size).filter(|&end| end <= bytes.len());
        let end = end.ok_or(ReadError::Short(start))?;
        if start < fixed_size || !start.is_multiple_of(ALIGNMENT) {
            return Err(ReadError::Short(start));
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..CHECKSUM]);
        hasher.update(&[0; 4]);
        hasher.update(&bytes[CHECKSUM + 4..fixed_size]);
        hasher.update(&bytes[start..end]);
        if hasher.finalize() != fixed.checksum {
            return Err(ReadError::Checksum);
        }
        let mut file = Self {
            bytes,
            headers: start..end,
            platforms: Vec::new(),
        };
        for header in file.headers() {
            let header = header?;
            if header.kind != Kind::IGVM_VHT_SUPPORTED_PLATFORM {
                continue;
            }
            let platform: defs::IGVM_VHS_SUPPORTED_PLATFORM = header.read()?;
            let mask = platform.compatibility_mask;
            let taken = |other: &defs::IGVM_VHS_SUPPORTED_PLATFORM| {
                other.compatibility_mask == mask || other.platform_type == platform.platform_type
            };
            if mask.count_ones() != 1 || file.platforms.iter().any(taken) {
                return Err(header.invalid("a platform's mask is not one bit of its own"));
            }
            file.platforms.push(platform);
        }
        Ok(file)
    }

    /// The platforms it is for, in the file's order.
    #[must_use]
    pub fn platforms(&self) -> &[defs::IGVM_VHS_SUPPORTED_PLATFORM] {
        &self.platforms
    }

    fn headers(&self) -> impl Iterator<Item = Result<Header<'a>, ReadError>> + use<'a> {
        let (bytes, end) = (self.bytes, self.headers.end);
        let mut at = self.headers.start;
        std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let start = at;
            let rest = &bytes[start..end];
            let header = defs::IGVM_VHS_VARIABLE_HEADER::read_from_prefix(rest).ok();
            let found = header.and_then(|(header, rest)| {
                let length = header.length as usize;
                let content = rest.get(..length)?;
                // The last one may end without its padding.
                let padded = length.next_multiple_of(ALIGNMENT).min(rest.len());
                at = start + size_of_val(&header) + padded;
                Some(Header {
                    at: start,
                    kind: header.typ,
                    content,
                })
            });
            if found.is_none() {
                // Nothing after it can be found.
                at = end;
            }
            Some(found.ok_or(ReadError::Short(start)))
        })
    }

    /// What is done for one of them.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn launch(
        &self,
        platform: &defs::IGVM_VHS_SUPPORTED_PLATFORM,
    ) -> Result<Launch<'a>, ReadError> {
        let mut launch = Launch {
            platform: platform.platform_type,
            policy: None,
            steps: Vec::new(),
            identity: None,
        };
        let mask = platform.compatibility_mask;
        let mut areas = BTreeMap::new();
        let mut parameter_pages = 0;
        for header in self.headers() {
            let header = header?;
            let step = match header.kind {
                Kind::IGVM_VHT_GUEST_POLICY => {
                    let policy: defs::IGVM_VHS_GUEST_POLICY = header.read()?;
                    if policy.compatibility_mask & mask != 0 {
                        launch.policy = Some(policy.policy);
                    }
                    None
                }
                Kind::IGVM_VHT_PAGE_DATA => self.page(&header, mask)?,
                Kind::IGVM_VHT_VP_CONTEXT => self.context(&header, mask)?,
                Kind::IGVM_VHT_PARAMETER_AREA => {
                    let area: defs::IGVM_VHS_PARAMETER_AREA = header.read()?;
                    if !area.number_of_bytes.is_multiple_of(PAGE_SIZE_4K) {
                        return Err(header.invalid("an area that does not end with a page"));
                    }
                    let pages = area.number_of_bytes / PAGE_SIZE_4K;
                    areas.insert(area.parameter_area_index, pages);
                    None
                }
                Kind::IGVM_VHT_PARAMETER_INSERT => {
                    let insert: defs::IGVM_VHS_PARAMETER_INSERT = header.read()?;
                    let pages = areas.remove(&insert.parameter_area_index);
                    let pages = pages.ok_or_else(|| header.invalid("an unknown parameter area"))?;
                    parameter_pages += pages.min(MAX_PARAMETER_PAGES + 1);
                    if parameter_pages > MAX_PARAMETER_PAGES {
                        return Err(header.invalid("too many pages of parameters"));
                    }
                    let address = aligned(&header, insert.gpa)?;
                    (insert.compatibility_mask & mask != 0)
                        .then_some(Step::Parameters { address, pages })
                }
                Kind::IGVM_VHT_SNP_ID_BLOCK => {
                    let block: defs::IGVM_VHS_SNP_ID_BLOCK = header.read()?;
                    if block.compatibility_mask & mask != 0 {
                        launch.identity = Some(Identity {
                            measurement: block.ld,
                            svn: block.guest_svn,
                            key: block.id_public_key,
                        });
                    }
                    None
                }
                kind if changes_nothing(kind) => None,
                Kind(kind) => {
                    return Err(ReadError::Unknown {
                        at: header.at,
                        kind,
                    });
                }
            };
            launch.steps.extend(step);
        }
        Ok(launch)
    }

    fn page(&self, header: &Header<'_>, mask: u32) -> Result<Option<Step<'a>>, ReadError> {
        let page: defs::IGVM_VHS_PAGE_DATA = header.read()?;
        if page.compatibility_mask & mask == 0 {
            return Ok(None);
        }
        if page.flags.is_2mb_page() {
            return Err(header.invalid("a page of 2 MiB"));
        }
        let kind = match page.data_type {
            IgvmPageDataType::NORMAL if page.flags.shared() => PageKind::Shared,
            IgvmPageDataType::NORMAL if page.flags.unmeasured() => PageKind::Unmeasured,
            IgvmPageDataType::NORMAL => PageKind::Measured,
            IgvmPageDataType::SECRETS => PageKind::Secrets,
            IgvmPageDataType::CPUID_DATA | IgvmPageDataType::CPUID_XF => PageKind::Cpuid,
            _ => return Err(header.invalid("a page of an unknown kind")),
        };
        let bytes = match page.file_offset {
            0 => None,
            at => Some(self.data(header, at)?),
        };
        Ok(Some(Step::Page {
            address: aligned(header, page.gpa)?,
            kind,
            bytes,
        }))
    }

    fn context(&self, header: &Header<'_>, mask: u32) -> Result<Option<Step<'a>>, ReadError> {
        // The structure ends at no multiple of its alignment.
        let context: defs::IGVM_VHS_VP_CONTEXT = header.read()?;
        if context.compatibility_mask & mask == 0 {
            return Ok(None);
        }
        Ok(Some(Step::Context {
            index: context.vp_index,
            address: aligned(header, context.gpa.get())?,
            bytes: self.data(header, context.file_offset)?,
        }))
    }

    /// A page of the file behind its headers.
    fn data(&self, header: &Header<'_>, at: u32) -> Result<&'a [u8; 4096], ReadError> {
        let at = at as usize;
        let bytes = self.bytes.get(at..).and_then(<[u8]>::first_chunk);
        let bytes = bytes.filter(|_| at >= self.headers.end);
        bytes.ok_or_else(|| header.invalid("data outside of the file's"))
    }
}

/// What is a page's place, and leaves room for those behind it.
fn aligned(header: &Header<'_>, address: u64) -> Result<u64, ReadError> {
    if address.is_multiple_of(PAGE_SIZE_4K) && address < 1 << 52 {
        Ok(address)
    } else {
        Err(header.invalid("an address that is no page's"))
    }
}

/// Says where parameters go, or what memory there has to be, or may be ignored.
fn changes_nothing(kind: Kind) -> bool {
    kind.0 & defs::IGVM_VHT_OPTIONAL_BIT != 0
        || matches!(
            kind,
            Kind::IGVM_VHT_SUPPORTED_PLATFORM
                | Kind::IGVM_VHT_VERSION_STRING
                | Kind::IGVM_VHT_REQUIRED_MEMORY
                | Kind::IGVM_VHT_VP_COUNT_PARAMETER
                | Kind::IGVM_VHT_SRAT
                | Kind::IGVM_VHT_MADT
                | Kind::IGVM_VHT_MMIO_RANGES
                | Kind::IGVM_VHT_MEMORY_MAP
                | Kind::IGVM_VHT_ERROR_RANGE
                | Kind::IGVM_VHT_COMMAND_LINE
                | Kind::IGVM_VHT_SLIT
                | Kind::IGVM_VHT_PPTT
                | Kind::IGVM_VHT_DEVICE_TREE
                | Kind::IGVM_VHT_ENVIRONMENT_INFO_PARAMETER
        )
}
