//! The processor's state at the kernel's first instruction: 64 bits, paging on,
//! flat segments, no interrupts.

use super::boot::{CODE_SELECTOR, DATA_SELECTOR, DESCRIPTORS_LIMIT, ENCRYPTED};
use super::layout;
use igvm::snp_defs::{SevFeatures, SevSelector, SevVmsa};
use igvm_defs::IgvmNativeVpContextX64;
use zerocopy::FromZeros;

/// Protection, a numeric coprocessor with native errors, paging.
const CR0: u64 = 0x8000_0031;
/// Machine checks, which KVM always turns on, and physical addresses of more
/// than 32 bits.
const CR4: u64 = 0x60;
/// Long mode, and the bit of a page table that forbids execution.
const EFER: u64 = 0xd00;
/// On while a processor is a guest of SVM.
const EFER_SVME: u64 = 0x1000;
/// Without interrupts; the one bit of it that is always set.
const RFLAGS: u64 = 2;
/// What a processor has after a reset, and KVM adds to what it was told (AMD64
/// Architecture Programmer's Manual, volume 2, "Processor Initialization
/// State").
const DR6: u64 = 0xffff_0ff0;
const DR7: u64 = 0x400;
const PAT: u64 = 0x0007_0406_0007_0406;
const MXCSR: u32 = 0x1f80;
const X87_CONTROL: u16 = 0x37f;

/// A segment's attributes as the VMSA has them: the two outer nibbles of a
/// descriptor's.
const CODE: u16 = 0xa9b;
const DATA: u16 = 0xc93;
const BUSY_TASK: u16 = 0x8b;
const LOCAL_TABLE: u16 = 0x82;

/// What a kernel needs beyond this is in memory.
pub(crate) struct Entry {
    /// The first instruction.
    pub(crate) instruction: u64,
}

impl Entry {
    /// The state as SEV-SNP has it. What is not said by the boot protocol is
    /// what KVM makes of a processor that was just made, so that the page that
    /// KVM measures is this one.
    pub(crate) fn vmsa(&self) -> SevVmsa {
        let segment = |selector, attrib, limit| SevSelector {
            selector,
            attrib,
            limit,
            base: 0,
        };
        let data = segment(DATA_SELECTOR, DATA, u32::MAX);
        SevVmsa {
            cs: segment(CODE_SELECTOR, CODE, u32::MAX),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: segment(0, BUSY_TASK, 0xffff),
            ldtr: segment(0, LOCAL_TABLE, 0xffff),
            gdtr: SevSelector {
                base: layout::DESCRIPTORS,
                limit: u32::from(DESCRIPTORS_LIMIT),
                selector: 0,
                attrib: 0,
            },
            efer: EFER | EFER_SVME,
            cr0: CR0,
            cr3: layout::PAGE_TABLES | ENCRYPTED,
            cr4: CR4,
            dr6: DR6,
            dr7: DR7,
            rflags: RFLAGS,
            rip: self.instruction,
            rsi: layout::BOOT_PARAMS,
            pat: PAT,
            xcr0: 1,
            mxcsr: MXCSR,
            x87_fcw: X87_CONTROL,
            sev_features: SevFeatures::new().with_snp(true),
            ..SevVmsa::new_zeroed()
        }
    }

    /// The state of a guest that nothing isolates.
    pub(crate) fn native(&self) -> IgvmNativeVpContextX64 {
        // Here the attributes lie as in a descriptor.
        let spread = |attributes: u16| (attributes & 0xf00) << 4 | attributes & 0xff;
        IgvmNativeVpContextX64 {
            rsi: layout::BOOT_PARAMS,
            rip: self.instruction,
            rflags: RFLAGS,
            gdtr_base: layout::DESCRIPTORS,
            gdtr_limit: DESCRIPTORS_LIMIT,
            code_selector: CODE_SELECTOR,
            code_attributes: spread(CODE),
            code_limit: u32::MAX,
            data_selector: DATA_SELECTOR,
            data_attributes: spread(DATA),
            data_limit: u32::MAX,
            cr0: CR0,
            cr3: layout::PAGE_TABLES,
            cr4: CR4,
            efer: EFER,
            ..IgvmNativeVpContextX64::new_zeroed()
        }
    }
}
