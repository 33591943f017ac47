//! A guest that is started from an IGVM file: no firmware, no loader, and nothing
//! in its memory but the file's pages.
//!
//! No QEMU here loads such files by itself, and no processor here isolates a
//! guest. So the pages are put into the guest's memory by QEMU's loader device,
//! and a firmware of this test's own does what a loader does after that: it sets
//! the processor's registers to what the file says. From its first instruction on
//! the kernel has what it would have anywhere.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as expected"
)]

use hypervisor::VmExit;
use igvm::{IgvmDirectiveHeader, IgvmFile};
use igvm_defs::IgvmNativeVpContextX64;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tardigrade_tests::built;
use tardigrade_tests::images::{no_initrd, root_disk, verity_initrd};
use tardigrade_tests::machine::{self, Failure, Machine};
use tardigrade_tests::root_disks;

/// Every wait here is for an emulated guest on a shared machine.
const DEADLINE: Duration = Duration::from_secs(120);
const MEMORY_MIB: u32 = 128;
/// Between the two is what a PC has there instead of memory.
const LOW_END: usize = 0xa_0000;
const HIGH_START: usize = 0x10_0000;

/// The size of the smallest firmware that QEMU takes; it ends at 4 GiB.
const FIRMWARE: usize = 64 << 10;
const FIRMWARE_START: u32 = 0xffff_0000;
/// Where the processor begins, and where the rest of the firmware lies in it.
const RESET: usize = 0xfff0;
const CODE: usize = 0xff00;
const EFER: u32 = 0xc000_0080;
/// It is read only: set by the processor when paging begins.
const LONG_MODE_ACTIVE: u64 = 1 << 10;

/// Enters the state that `state` describes.
fn firmware(state: &IgvmNativeVpContextX64) -> Vec<u8> {
    let low = |register: u64| u32::try_from(register).unwrap().to_le_bytes();
    let mut code = Vec::new();
    // What a register of control gets goes through eax; 16 bits.
    let set = |code: &mut Vec<u8>, value: u64, move_to: [u8; 3]| {
        code.extend([0x66, 0xb8]);
        code.extend(low(value));
        code.extend(move_to);
    };
    // lgdt, of a limit and a base that lie behind the code.
    const DESCRIPTORS: u16 = 0xffe0;
    code.extend([0x66, 0x2e, 0x0f, 0x01, 0x16]);
    code.extend(DESCRIPTORS.to_le_bytes());
    set(&mut code, state.cr4, [0x0f, 0x22, 0xe0]);
    set(&mut code, state.cr3, [0x0f, 0x22, 0xd8]);
    // mov ecx, EFER; xor edx, edx; mov eax, value; wrmsr.
    code.extend([0x66, 0xb9]);
    code.extend(EFER.to_le_bytes());
    code.extend([0x66, 0x31, 0xd2, 0x66, 0xb8]);
    code.extend(low(state.efer & !LONG_MODE_ACTIVE));
    code.extend([0x0f, 0x30]);
    set(&mut code, state.cr0, [0x0f, 0x22, 0xc0]);
    // A far jump to the next instruction, which is one of 64 bits.
    let next = FIRMWARE_START + u32::try_from(CODE + code.len() + 8).unwrap();
    code.extend([0x66, 0xea]);
    code.extend(next.to_le_bytes());
    code.extend(state.code_selector.to_le_bytes());
    // mov eax, data; mov to ds, es, ss, fs, gs.
    code.push(0xb8);
    code.extend(u32::from(state.data_selector).to_le_bytes());
    code.extend([0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0x8e, 0xe0, 0x8e, 0xe8]);
    // mov rsi, value; mov rax, first instruction; jmp rax.
    code.extend([0x48, 0xbe]);
    code.extend(state.rsi.to_le_bytes());
    code.extend([0x48, 0xb8]);
    code.extend(state.rip.to_le_bytes());
    code.extend([0xff, 0xe0]);

    let mut firmware = vec![0; FIRMWARE];
    let mut put = |at: usize, bytes: &[u8]| firmware[at..at + bytes.len()].copy_from_slice(bytes);
    put(CODE, &code);
    put(DESCRIPTORS.into(), &state.gdtr_limit.to_le_bytes());
    put(usize::from(DESCRIPTORS) + 2, &low(state.gdtr_base));
    // jmp, counted from the instruction after it.
    let back = i16::try_from(CODE as i64 - (RESET as i64 + 3)).unwrap();
    put(RESET, &[0xe9]);
    put(RESET + 1, &back.to_le_bytes());
    firmware
}

/// What the file makes of a guest's memory and of its processor.
fn load(file: &Path) -> (Vec<u8>, IgvmNativeVpContextX64) {
    let file = IgvmFile::new_from_binary(&fs::read(file).unwrap(), None).unwrap();
    let mut memory = vec![0; (MEMORY_MIB as usize) << 20];
    let mut state = None;
    for directive in file.directives() {
        match directive {
            IgvmDirectiveHeader::PageData { gpa, data, .. } => {
                let start = usize::try_from(*gpa).unwrap();
                memory[start..start + data.len()].copy_from_slice(data);
            }
            IgvmDirectiveHeader::X64NativeVpContext { context, .. } => state = Some(context),
            other => panic!("a directive that a guest without isolation has not: {other:?}"),
        }
    }
    (memory, **state.unwrap())
}

/// A program that is QEMU, but for what it boots: that is the file.
fn qemu_with(directory: &Path, file: &Path) -> PathBuf {
    let (memory, state) = load(file);
    assert!(memory[LOW_END..HIGH_START].iter().all(|&byte| byte == 0));
    let at = |name: &str| directory.join(name);
    fs::write(at("firmware"), firmware(&state)).unwrap();
    fs::write(at("low"), &memory[..LOW_END]).unwrap();
    fs::write(at("high"), &memory[HIGH_START..]).unwrap();
    let script = format!(
        r#"#!/bin/sh
left=$# booted= skip=
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    if [ -n "$skip" ]; then
        skip=
        continue
    fi
    case $word in
    -kernel | -initrd | -append) booted=1 skip=1 ;;
    *) set -- "$@" "$word" ;;
    esac
done
[ -z "$booted" ] || set -- "$@" -bios '{firmware}' \
    -device 'loader,file={low},addr=0,force-raw=on' \
    -device 'loader,file={high},addr={HIGH_START:#x},force-raw=on'
exec '{qemu}' "$@"
"#,
        firmware = at("firmware").display(),
        low = at("low").display(),
        high = at("high").display(),
        qemu = machine::find_qemu().unwrap().display(),
    );
    let program = at("qemu");
    fs::write(&program, script).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).unwrap();
    program
}

/// Makes a file of that kernel and initrd, and of a root disk with a hash tree;
/// boots it, runs a container, and has the guest end itself.
async fn boots(kernel: &Path, directory: &Path, initrd: Option<&Path>) -> Result<(), Failure> {
    let (disk, _) = root_disk(directory, &["--layout", "verity"]);
    let unused = no_initrd(directory);
    let spec = root_disks::spec(directory, &unused, &disk, "");
    let file = directory.join("guest.igvm");
    let mut maker = Command::new(built("release/rootfs-builder"));
    maker
        .args(["igvm", "--platform", "native", "--memory"])
        .arg(MEMORY_MIB.to_string())
        .arg("--kernel")
        .arg(kernel)
        .arg("--manifest")
        .arg(disk.with_extension("img.json"))
        .args(["--cmdline", &spec.cmdline, "--output"])
        .arg(&file);
    if let Some(initrd) = initrd {
        maker.arg("--initrd").arg(initrd);
    }
    let made = maker.output()?;
    let error = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{error}");

    let qemu = machine::qemu_at(Some(qemu_with(directory, &file))).await?;
    let script = format!("{}; cat /proc/cmdline", root_disks::erofs_script());
    let machine = Machine::boot(&qemu, &spec).await?;
    let said = root_disks::ask(&machine, &script).await?;
    root_disks::see_erofs(&said);
    assert!(said.contains("dm-mod.create=\"root,,,ro,0 "), "{said}");
    machine.agent.destroy_sandbox(DEADLINE).await?;
    let ended = tokio::time::timeout(DEADLINE, machine.vm.wait()).await??;
    assert_eq!(ended, VmExit::Exited(0));
    Ok(())
}

#[tokio::test]
async fn a_guest_of_an_igvm_file_runs_its_workload_from_the_root_disk_that_the_file_names()
-> Result<(), Failure> {
    let (_guard, directory) = machine::directory();
    let packed = directory.join("packed");
    std::fs::create_dir(&packed)?;
    let initrd = verity_initrd(&packed, "zstd");
    boots(&built("guest/vmlinuz"), &directory, Some(&initrd)).await
}

mod own_kernel {
    use super::{Failure, boots, machine};
    use tardigrade_tests::images;

    #[tokio::test]
    async fn a_guest_of_an_igvm_file_runs_its_workload_without_an_initrd() -> Result<(), Failure> {
        let (_guard, directory) = machine::directory();
        boots(&images::own_kernel(), &directory, None).await
    }
}
