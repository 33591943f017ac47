//! The tables that a PC's firmware would have told the kernel of its machine by
//! (ACPI specification 6.5), so that it finds its timers, its interrupts and its
//! PCI bus. They are measured with the rest: the guest takes no table, and no
//! code in one, from its host.
//!
//! What they say holds for QEMU's `q35`, where it was tried, and `pc`, with one
//! processor and up to 2 GiB of memory, whose firmware never ran. Cloud Hypervisor
//! emulates neither the old interrupt controllers nor the old timer, which a
//! kernel looks for by them: a guest of its needs another timer, and was not
//! tried.

use super::layout;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Path,
    ResourceTemplate, Scope, ZERO,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

const OEM: [u8; 6] = *b"TARDIG";
const OEM_TABLE: [u8; 8] = *b"TARDIGRD";
const OEM_REVISION: u32 = 1;

/// Every table begins at a multiple of this, which is the most that one asks
/// for (ACPI 5.2.10).
const ALIGNMENT: usize = 64;
/// The size of a table's header (ACPI 5.2.6).
const HEADER: u32 = 36;

/// Of a PC's chip set (QEMU's hw/i386): the processor's interrupt controller, and
/// the one that devices are connected to.
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// It has the two old controllers, too, which have to be masked (ACPI 5.2.12).
const PCAT_COMPATIBLE: u32 = 1;
/// The timer's interrupt 0 is connected to 2; the 9 is ACPI's own, level
/// triggered and active high.
const TIMER_PIN: u32 = 2;
const SCI: u8 = 9;
const AS_THE_BUS_HAS_IT: u16 = 0;
const LEVEL_AND_HIGH: u16 = 0b1101;

/// Power management registers, where firmware would have put them. Without it
/// nothing answers there: the guest cannot turn itself off, and resets. ACPI
/// without these registers would be ACPI without the old timer, which is the only
/// one that a guest of SEV-SNP has: its CPUID page has no TSC deadline.
const PM1_EVENTS: u16 = 0x600;
const PM1_CONTROL: u16 = 0x604;
/// Microseconds that no processor state is as slow as: there is none but the first
/// (ACPI 5.2.9).
const NO_SECOND_STATE: u16 = 101;
const NO_THIRD_STATE: u16 = 1001;
/// Writing this there resets the machine.
const RESET_PORT: u16 = 0xcf9;
const RESET: u8 = 6;
/// There are devices of the old kind, and a keyboard controller (ACPI 5.2.9.3).
const BOOT_ARCHITECTURE: u16 = 0b11;

/// The window of the PCI bus below 4 GiB: above the memory of any guest of ours,
/// and below the interrupt controllers.
const WINDOW: (u32, u32) = (0xc000_0000, 0xfebf_ffff);
/// Configuration mechanism 1 of PCI: two ports of four bytes.
const PCI_CONFIGURATION: u16 = 0xcf8;
/// The first serial port: its ports and its interrupt.
const SERIAL: u16 = 0x3f8;
const SERIAL_INTERRUPT: u32 = 4;

/// All tables as they lie from [`layout::TABLES`] on. The first is the pointer
/// to the others, which the zero page points at.
pub(crate) fn tables() -> Vec<u8> {
    let mut all = Tables(vec![0; size_of::<Rsdp>()]);
    let dsdt = all.put(&dsdt());
    let facs = all.put(&bytes_of(&FACS::new()));
    let fadt = all.put(&bytes_of(&fadt(dsdt, facs)));
    let madt = all.put(madt().as_slice());
    let mut root = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    root.add_entry(fadt);
    root.add_entry(madt);
    let root = all.put(&bytes_of(&root));
    let pointer = bytes_of(&Rsdp::new(OEM, root));
    all.0[..pointer.len()].copy_from_slice(&pointer);
    all.0
}

struct Tables(Vec<u8>);

impl Tables {
    /// Appends a table, and says where it will lie.
    fn put(&mut self, table: &[u8]) -> u64 {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        let address = layout::TABLES + self.0.len() as u64;
        self.0.extend_from_slice(table);
        address
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Power management, as little as there can be of it, and how to reset.
fn fadt(dsdt: u64, facs: u64) -> impl Aml {
    let mut table = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_64(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup);
    table.sci_int = u16::from(SCI).into();
    table.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    table.pm1a_evt_blk = u32::from(PM1_EVENTS).into();
    table.pm1_evt_len = 4;
    table.pm1a_cnt_blk = u32::from(PM1_CONTROL).into();
    table.pm1_cnt_len = 2;
    table.p_lvl2_lat = NO_SECOND_STATE.into();
    table.p_lvl3_lat = NO_THIRD_STATE.into();
    let (space, access) = (Space::SystemIo, AccessSize::ByteAccess);
    table.reset_reg = GAS::new(space, 8, 0, access, RESET_PORT.into());
    table.reset_value = RESET;
    table.finalize()
}

/// The interrupt controllers, and what is connected otherwise than by number.
fn madt() -> Sdt {
    let mut table = Sdt::new(*b"APIC", HEADER, 4, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&LOCAL_APIC.to_le_bytes());
    table.append_slice(&PCAT_COMPATIBLE.to_le_bytes());
    // Each begins with its kind and its length: a processor that is there, the
    // controller with its first interrupt, two that are connected otherwise.
    table.append_slice(&[0, 8, 0, 0, 1, 0, 0, 0]);
    table.append_slice(&[1, 12, 0, 0]);
    table.append_slice(&IO_APIC.to_le_bytes());
    table.append_slice(&0_u32.to_le_bytes());
    let lines = [
        (0, TIMER_PIN, AS_THE_BUS_HAS_IT),
        (SCI, SCI.into(), LEVEL_AND_HIGH),
    ];
    for (line, pin, mode) in lines {
        table.append_slice(&[2, 10, 0, line]);
        table.append_slice(&pin.to_le_bytes());
        table.append_slice(&mode.to_le_bytes());
    }
    table
}

/// The devices that nobody can look for: the root of the PCI bus, with what it
/// has to give to the devices on it, and the serial port.
fn dsdt() -> Vec<u8> {
    let bus = AddressSpace::new_bus_number(0_u16, 255);
    let configuration = IO::new(PCI_CONFIGURATION, PCI_CONFIGURATION, 1, 8);
    let low_ports = AddressSpace::new_io(0_u16, PCI_CONFIGURATION - 1, None);
    let high_ports = AddressSpace::new_io(PCI_CONFIGURATION + 8, u16::MAX, None);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let window = AddressSpace::new_memory(cacheable, true, WINDOW.0, WINDOW.1, None);
    let pci = ResourceTemplate::new(vec![&bus, &configuration, &low_ports, &high_ports, &window]);
    let ports = IO::new(SERIAL, SERIAL, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, SERIAL_INTERRUPT);
    let serial = ResourceTemplate::new(vec![&ports, &interrupt]);
    let (is_pci, is_serial) = (EISAName::new("PNP0A03"), EISAName::new("PNP0501"));
    let name = |name: &str, value: &dyn Aml| Name::new(Path::new(name), value);
    let number = name("_UID", &ZERO);
    let (pci_id, pci_resources) = (name("_HID", &is_pci), name("_CRS", &pci));
    let (serial_id, serial_resources) = (name("_HID", &is_serial), name("_CRS", &serial));
    let pci = Device::new(Path::new("PCI0"), vec![&pci_id, &number, &pci_resources]);
    let serial = vec![&serial_id as &dyn Aml, &number, &serial_resources];
    let serial = Device::new(Path::new("COM1"), serial);
    let mut table = Sdt::new(*b"DSDT", HEADER, 6, OEM, OEM_TABLE, OEM_REVISION);
    let scope = Scope::new(Path::new("_SB_"), vec![&pci, &serial]);
    let mut code = Vec::new();
    scope.to_aml_bytes(&mut code as &mut dyn AmlSink);
    table.append_slice(&code);
    table.as_slice().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8], size: usize) -> u64 {
        let mut whole = [0; 8];
        whole[..size].copy_from_slice(&bytes[..size]);
        u64::from_le_bytes(whole)
    }

    /// The table at an address of the guest's, whose bytes add up to nothing.
    fn table<'a>(all: &'a [u8], address: u64, signature: &[u8; 4]) -> &'a [u8] {
        let table = &all[(address - layout::TABLES) as usize..];
        let table = &table[..number(&table[4..], 4) as usize];
        assert_eq!(&table[..4], signature);
        assert_eq!(sum(table), 0);
        table
    }

    fn sum(bytes: &[u8]) -> u8 {
        let add = |sum: u8, byte: &u8| sum.wrapping_add(*byte);
        bytes.iter().fold(0, add)
    }

    #[test]
    fn each_table_is_found_from_the_first_one_and_adds_up() {
        let all = tables();
        assert!(all.len() as u64 <= layout::TABLES_END - layout::TABLES);
        assert_eq!(&all[..8], b"RSD PTR ");
        assert_eq!((sum(&all[..20]), sum(&all[..36])), (0, 0));
        let root = table(&all, number(&all[24..], 8), b"XSDT");
        let fixed = table(&all, number(&root[36..], 8), b"FACP");
        let interrupts = table(&all, number(&root[44..], 8), b"APIC");
        assert_eq!(root.len(), 52);
        let code = table(&all, number(&fixed[140..], 8), b"DSDT");
        // This one has no checksum, and its lock is free (ACPI 5.2.10).
        let facs = (number(&fixed[132..], 8) - layout::TABLES) as usize;
        assert_eq!((facs % 64, &all[facs..facs + 4]), (0, &b"FACS"[..]));
        assert_eq!(all[facs + 8..facs + 32], [0; 24]);
        // Interrupt, registers and reset (ACPI 5.2.9).
        assert_eq!(number(&fixed[46..], 2), 9);
        assert_eq!(number(&fixed[56..], 4), 0x600);
        assert_eq!(number(&fixed[64..], 4), 0x604);
        assert_eq!((number(&fixed[120..], 8), fixed[128]), (0xcf9, 6));
        // PNP0A03 and PNP0501, packed as an EISA id is.
        for id in [[0x41, 0xd0, 0x0a, 0x03], [0x41, 0xd0, 0x05, 0x01]] {
            assert!(code.windows(4).any(|four| four == id));
        }
        assert_eq!(number(&interrupts[36..], 4), 0xfee0_0000);
        // The parts of the list are as long as they say, to its end.
        let mut parts = &interrupts[44..];
        let mut kinds = Vec::new();
        while let [kind, length, ..] = *parts {
            kinds.push(kind);
            parts = &parts[usize::from(length)..];
        }
        assert_eq!(kinds, [0, 1, 2, 2]);
        assert!(parts.is_empty());
    }
}
