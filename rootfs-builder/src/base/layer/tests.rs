//! Layers of tar archives: made here, and by tar(1).

use super::*;
use crate::base::directory;
use crate::sample::{TarMember, link, member, tar};
use proptest::prelude::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn apply(layers: &[&[TarMember<'_>]]) -> Result<Layers, LayerError> {
    let mut all = Layers::default();
    for layer in layers {
        all.apply(tar(layer).as_slice())?;
    }
    Ok(all)
}

/// Paths, and a `/` or the first bytes or the link's target of each.
fn shown(layers: &Layers) -> Vec<String> {
    let show = |(path, entry): (&EntryPath, &Entry)| match &entry.content {
        Content::Directory => format!("{path}/"),
        Content::File(bytes) => format!("{path}={}", String::from_utf8_lossy(bytes)),
        Content::Symlink(target) => format!("{path}->{target}"),
        Content::CharacterDevice { .. } => format!("{path} is a device"),
    };
    layers.archive.entries().map(show).collect()
}

#[test]
fn a_later_layer_changes_and_takes_away_what_earlier_ones_have() {
    let lower = [
        member("./", b'5', b""),
        member("./a/", b'5', b""),
        member("./a/one", b'0', b"1"),
        member("./a/two", b'0', b"2"),
        member("./b/deep/x", b'0', b"x"),
        member("./c", b'0', b"c"),
        member("./d/x", b'0', b"d"),
    ];
    let upper = [
        member("a/one", b'0', b"I"),
        member("a/.wh.two", b'0', b""),
        // Before and after what the layer itself has.
        member("b/new", b'0', b"n"),
        member("b/.wh..wh..opq", b'0', b""),
        member("b/deep/y", b'0', b"y"),
        link("c", b'2', "a/one"),
        member(".wh.d", b'0', b""),
        member(".wh.nothing", b'0', b""),
        member("e", b'0', b"e"),
        member(".wh.e", b'0', b""),
    ];
    let layers = apply(&[&lower, &upper]).unwrap();
    let expected = [
        "a/",
        "a/one=I",
        "b/",
        "b/deep/",
        "b/deep/y=y",
        "b/new=n",
        "c->a/one",
        "e=e",
    ];
    assert_eq!(shown(&layers), expected);
    // What a whiteout kept of its own layer the next one takes away.
    let last = [
        member(".wh.e", b'0', b""),
        member(".wh..wh..opq", b'0', b""),
    ];
    let layers = apply(&[&lower, &upper, &last]).unwrap();
    assert_eq!(shown(&layers), [""; 0]);
}

#[test]
fn an_opaque_directory_keeps_the_way_to_what_its_layer_has() {
    let lower = [member("b/deep/x", b'0', b"x"), member("b/y", b'0', b"y")];
    let upper = [
        member("b/deep/new", b'0', b"n"),
        member("b/.wh..wh..opq", b'0', b""),
    ];
    let layers = apply(&[&lower, &upper]).unwrap();
    assert_eq!(shown(&layers), ["b/", "b/deep/", "b/deep/new=n"]);
    // The same by another name.
    let upper = [member("b/deep/new", b'0', b"n"), member(".wh.b", b'0', b"")];
    let layers = apply(&[&lower, &upper]).unwrap();
    assert_eq!(shown(&layers), ["b/", "b/deep/", "b/deep/new=n"]);
}

#[test]
fn links_are_kept_as_they_are_and_lead_nowhere_outside() {
    let layers = apply(&[&[
        link("escape", b'2', "../../../etc"),
        link("host", b'2', "/etc/shadow"),
        member("escape/passwd", b'0', b"ours"),
        member("bin/tool", b'0', b"t"),
        link("bin/twin", b'1', "./bin/tool"),
        link("usr", b'2', "bin"),
        link("third", b'1', "usr/tool"),
    ]])
    .unwrap();
    let expected = [
        "bin/",
        "bin/tool=t",
        "bin/twin=t",
        "escape->../../../etc",
        "etc/",
        "etc/passwd=ours",
        "host->/etc/shadow",
        "third=t",
        "usr->bin",
    ];
    assert_eq!(shown(&layers), expected);
}

#[test]
fn what_an_image_cannot_hold_is_refused_by_name() {
    let long = "d/".repeat(49) + "x";
    let attribute = pax("SCHILY.xattr.security.capability", b"\x01\0");
    let sparse = pax("GNU.sparse.major", b"1");
    let path = pax("path", b"a");
    let cases: &[(&[TarMember<'_>], &str)] = &[
        (&[member("../x", b'0', b"")], "keep a member"),
        (&[member("a/../../x", b'0', b"")], "keep a member"),
        (&[member("a//x", b'0', b"")], "keep a member"),
        (&[link("x", b'1', "../../etc/shadow")], "keep a member"),
        (
            &[link("x", b'1', "/etc/shadow")],
            "hard link to /etc/shadow",
        ),
        (
            &[link("l", b'2', "/etc"), link("x", b'1', "l/shadow")],
            "hard link to /etc/shadow",
        ),
        (
            &[link("l", b'2', "f"), link("x", b'1', "l")],
            "hard link to /l",
        ),
        (&[member("null", b'3', b"")], "/null: device nodes"),
        (&[member("dev/sda", b'4', b"")], "/dev/sda: device nodes"),
        (&[member("pipe", b'6', b"")], "/pipe: FIFOs"),
        (&[member("x", b'S', b"")], "the type 'S'"),
        (&[member("x", b'5', b"data")], "odd size"),
        (&[member(".wh..wh.plnk", b'0', b"")], "are reserved"),
        (&[member(".wh.", b'0', b"")], "are reserved"),
        (
            &[member("pax", b'x', &attribute), member("ping", b'0', b"")],
            "/ping: its attribute security.capability",
        ),
        (
            &[member("pax", b'x', &sparse)],
            "the record GNU.sparse.major",
        ),
        (&[member("pax", b'x', b"")], "odd end"),
        (
            &[member("pax", b'x', &path), member("pax", b'x', &path)],
            "odd extension",
        ),
        (&[member("pax", b'x', b"9 path")], "odd extension"),
        (
            &[
                link("a", b'2', "b"),
                link("b", b'2', "a"),
                member("a/x", b'0', b""),
            ],
            "put the base together",
        ),
        (
            &[member("f", b'0', b""), member("f/x", b'0', b"")],
            "put the base together",
        ),
    ];
    for (members, reason) in cases {
        let error = apply(&[members]).unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error}");
    }
    let deep: String = "d/".repeat(MAX_DEPTH) + "x";
    let deep = pax("path", deep.as_bytes());
    let error = apply(&[&[member("pax", b'x', &deep), member("p", b'0', b"")]]).unwrap_err();
    assert!(matches!(error, LayerError::TooMuch(_)), "{error}");
    assert!(apply(&[&[member(&long, b'0', b"")]]).is_ok());
}

/// A record of an extended header.
fn pax(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
    let mut length = rest.len();
    while length.to_string().len() + rest.len() != length {
        length = length.to_string().len() + rest.len();
    }
    [length.to_string().as_bytes(), &rest].concat()
}

#[test]
fn a_program_that_ran_as_another_user_does_not_run_as_root() {
    let program = |path, mode, owner| TarMember {
        mode,
        owner,
        ..member(path, b'0', b"")
    };
    let layers = apply(&[&[
        program("su", 0o4755, (0, 0)),
        program("wall", 0o2755, (0, 5)),
        program("games", 0o6755, (7, 0)),
    ]])
    .unwrap();
    let modes: Vec<_> = layers
        .archive
        .entries()
        .map(|(_, entry)| entry.permissions)
        .collect();
    assert_eq!(modes, [0o2755, 0o4755, 0o0755]);
    assert_eq!(layers.changes.len(), 2);
    assert!(layers.changes[0].contains("/wall: mode 2755 became 0755"));
}

#[test]
fn an_archive_that_unpacks_to_too_much_is_not_unpacked_to_its_end() {
    // A file of a gibibyte that is linked again and again.
    let mut layers = Layers {
        bytes: MAX_BYTES - 10,
        ..Layers::default()
    };
    let members = [
        member("a", b'0', b"12345"),
        link("b", b'1', "a"),
        link("c", b'1', "a"),
    ];
    let error = layers.apply(tar(&members).as_slice()).unwrap_err();
    assert!(
        matches!(error, LayerError::TooMuch("4 GiB unpacked")),
        "{error}"
    );
    let mut layers = Layers {
        entries: MAX_ENTRIES - 1,
        ..Layers::default()
    };
    let error = layers.apply(tar(&members).as_slice()).unwrap_err();
    assert!(matches!(error, LayerError::TooMuch(_)), "{error}");
    let capped = Capped {
        from: io::repeat(0x61).take(1 << 20),
        left: 1 << 10,
    };
    let error = Layers::default().apply(capped).err().unwrap();
    // The header is wrong first; past it there is an end.
    assert!(matches!(error, LayerError::Tar(TarError::Checksum)));
    let mut capped = Capped {
        from: io::repeat(0).take(1 << 20),
        left: 1 << 10,
    };
    let error = io::copy(&mut capped, &mut io::sink()).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
}

/// A tree with what tar has special ways for.
fn plant(root: &Path) {
    fs::create_dir_all(root.join("d/e")).unwrap();
    let long = root.join("n".repeat(120)).join("m".repeat(200));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("file"), "long").unwrap();
    symlink("t".repeat(300), root.join("link")).unwrap();
    symlink("../../etc/shadow", root.join("d/escape")).unwrap();
    fs::write(root.join("d/\u{e4} \n=x"), vec![7; 70_000]).unwrap();
    fs::write(root.join("d/run"), "#!").unwrap();
    fs::set_permissions(root.join("d/run"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(root.join("d/e"), fs::Permissions::from_mode(0o1777)).unwrap();
}

#[test]
fn what_tar_wrote_is_what_lies_in_the_directory_in_each_of_its_formats() {
    let directory = tempfile::tempdir().unwrap();
    let tree = directory.path().join("tree");
    plant(&tree);
    let (expected, changes, _) = directory::load(&tree).unwrap();
    assert_eq!(changes, [""; 0]);
    for format in ["gnu", "pax", "oldgnu"] {
        let output = crate::tool::command("tar")
            .args([
                "--create",
                "--owner=0",
                "--group=0",
                "--format",
                format,
                ".",
            ])
            .current_dir(&tree)
            .output();
        let Ok(output) = output else {
            eprintln!("skipped: tar is not installed");
            return;
        };
        assert!(output.status.success(), "{output:?}");
        let mut layers = Layers::default();
        layers.apply(output.stdout.as_slice()).unwrap();
        assert!(layers.archive == expected, "{format}: {:?}", shown(&layers));
    }
}

proptest! {
    #[test]
    fn no_flipped_bit_of_an_archive_panics(at: prop::sample::Index, bit in 0_u8..8) {
        let record = pax("path", b"x/y");
        let mut bytes = tar(&[
            member("pax", b'x', &record),
            member("p", b'0', b"data"),
            link("l", b'2', "x"),
            link("l/h", b'1', "x/y"),
        ]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = Layers::default().apply(bytes.as_slice());
    }

    #[test]
    fn whatever_names_an_archive_has_every_path_is_in_normal_form(
        names in prop::collection::vec("[./a-c]{1,9}", 1..8),
        targets in prop::collection::vec("[./a-c]{1,9}", 1..8),
    ) {
        let mut layers = Layers::default();
        for (name, target) in names.iter().zip(&targets) {
            for kind in [b'0', b'2', b'1', b'5'] {
                let _ = layers.apply(tar(&[link(name, kind, target)]).as_slice());
            }
        }
        for (path, _) in layers.archive.entries() {
            prop_assert!(path.as_str().parse::<EntryPath>().is_ok());
            for above in std::iter::successors(path.parent(), EntryPath::parent) {
                let entry = layers.archive.get(&above).unwrap();
                prop_assert_eq!(&entry.content, &Content::Directory);
            }
        }
    }
}
