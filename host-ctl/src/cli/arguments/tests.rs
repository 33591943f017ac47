//! What is parsed, and what is refused.

use super::*;
use crate::sandbox::vmm::memory_mode_name;
use clap::CommandFactory;
use clap::error::ErrorKind;
use proptest::prelude::*;

fn parse(line: &str) -> Result<Arguments, clap::Error> {
    Arguments::try_parse_from(std::iter::once("host-ctl").chain(line.split(' ')))
}

#[test]
fn the_definition_is_sound() {
    Arguments::command().debug_assert();
}

#[test]
fn a_template_is_built_with_nothing_in_it_or_with_a_whole_container() {
    let parsed = parse("template build small --memory 128").unwrap();
    let Command::Template(TemplateCommand::Build(build)) = parsed.command else {
        panic!("another command");
    };
    assert!(build.container.is_none());
    for half in [
        "template build x --rootfs i",
        "template build x -- true",
        "template build x --env A=b",
        "template build x --cwd /srv",
        "template build x --container other",
        "template build x --ready true",
        "template build x --warm true",
        "run --rootfs i",
        "run -- true",
        "run",
    ] {
        let error = parse(half).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingRequiredArgument, "{half}");
    }
}

#[test]
fn a_template_is_built_with_ready_and_warm_commands() {
    let arguments = Arguments::try_parse_from([
        "host-ctl",
        "template",
        "build",
        "redis",
        "--rootfs",
        "redis.erofs",
        "--memory",
        "512",
        "--ready",
        "redis-cli ping",
        "--warm",
        "redis-cli set a 'b c'",
        "--warm",
        "redis-cli get a",
        "--env",
        "A=b=c",
        "--",
        "redis-server",
        "--save",
        "",
    ])
    .unwrap();
    let Command::Template(TemplateCommand::Build(build)) = arguments.command else {
        panic!("{:?}", arguments.command);
    };
    assert_eq!(build.machine.memory, 512);
    assert_eq!(build.machine.cpus, 1);
    let container = build.container.as_ref().unwrap();
    assert_eq!(container.id, "main");
    assert_eq!(container.command, ["redis-server", "--save", ""]);
    assert_eq!(build.ready.unwrap().0, ["redis-cli", "ping"]);
    assert_eq!(build.warm[0].0, ["redis-cli", "set", "a", "b c"]);
    assert_eq!(build.warm.len(), 2);
    assert_eq!(container.env, ["A=b=c"]);
}

#[test]
fn a_clone_counts_and_prints_as_asked() {
    let arguments = parse("clone redis -n 8 --timings --output json").unwrap();
    assert_eq!(arguments.output, Output::Json);
    let Command::Clone(clone) = arguments.command else {
        panic!("{:?}", arguments.command);
    };
    assert_eq!((clone.count, clone.timings), (8, true));
}

#[test]
fn the_words_for_memory_are_those_of_refusals() {
    for mode in CloneMemory::value_variants() {
        let word = mode.to_possible_value().unwrap();
        assert_eq!(word.get_name(), memory_mode_name(mode.mode()));
    }
}

#[test]
fn everything_after_the_dashes_belongs_to_the_command() {
    let arguments = parse("exec one --container web -t -- ls --output json -n").unwrap();
    assert_eq!(arguments.output, Output::Text);
    let Command::Exec(exec) = arguments.command else {
        panic!("{:?}", arguments.command);
    };
    assert!(exec.terminal);
    assert_eq!(exec.command, ["ls", "--output", "json", "-n"]);
}

#[test]
fn wrong_usage_is_refused() {
    for line in [
        "",
        "explode",
        "clone",
        "clone redis -n 0",
        "clone redis -n many",
        "clone redis --memory shared",
        "exec one",
        "exec one ls",
        "exec one --guest --container web -- ls",
        "exec one --cwd relative -- ls",
        "run --rootfs r.erofs",
        "run --rootfs r.erofs --memory 1 -- ls",
        "run --rootfs r.erofs --vmm xen -- ls",
        "run --rootfs r.erofs --agent-link tcp -- ls",
        "run --rootfs r.erofs --network bridge -- ls",
        "run --rootfs r.erofs --env =x -- ls",
        "run --rootfs r.erofs --container ../x -- ls",
        "template build ../x --rootfs r.erofs -- ls",
        "supervise --adopt ../x",
        "rm",
        "rm --all one",
        "list --output xml",
    ] {
        let error = parse(line).expect_err(line);
        assert_eq!(error.exit_code(), 2, "{line}: {error}");
        assert_ne!(error.kind(), ErrorKind::DisplayHelp, "{line}");
    }
}

#[test]
fn the_supervisor_is_hidden_but_there() {
    let help = Arguments::command().render_long_help().to_string();
    assert!(!help.contains("supervise"), "{help}");
    assert!(parse("supervise").is_ok());
    assert!(parse("supervise --adopt 0123456789ab").is_ok());
}

#[test]
fn quotes_keep_words_together() {
    assert_eq!(
        parse_words("a  'b c' d\"e f\"").unwrap().0,
        ["a", "b c", "de f"]
    );
    assert_eq!(parse_words("a ''").unwrap().0, ["a", ""]);
    assert!(parse_words("a 'b").is_err());
    assert!(parse_words("  ").is_err());
    assert!(parse_words("''").is_err());
}

proptest! {
    #[test]
    fn quoted_words_come_back_as_they_were(
        words in prop::collection::vec("[^'\"]{0,10}", 0..5)
    ) {
        let line: String = words.iter().map(|word| format!(" '{word}'")).collect();
        let line = format!("run{line}");
        let parsed = parse_words(&line).unwrap();
        prop_assert_eq!(&parsed.0[1..], &words[..]);
    }
}

#[test]
fn a_directory_is_split_where_the_guests_path_begins() {
    let parsed = |text| {
        let DirectoryArgument {
            host,
            guest,
            readonly,
        } = parse_directory(text).unwrap();
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        (text(host), text(guest), readonly)
    };
    let is = |host: &str, guest: &str, readonly| (host.to_owned(), guest.to_owned(), readonly);
    assert_eq!(parsed("/srv/data:/data"), is("/srv/data", "/data", false));
    assert_eq!(parsed("data:/data:ro"), is("data", "/data", true));
    assert_eq!(parsed("/a:b:/c/d"), is("/a:b", "/c/d", false));
    assert_eq!(parsed("/a:/b:/c:ro"), is("/a:/b", "/c", true));
    for wrong in [
        "",
        "/srv",
        "/srv:data",
        ":/data",
        "/srv:/",
        "/srv:/:ro",
        "/srv:/../etc",
        "/srv:ro",
    ] {
        assert!(parse_directory(wrong).is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn whatever_a_directory_is_called_it_comes_back(
        host in "[^:]{1,10}(:[^:/][^:]{0,5})?", guest in "/[a-z]{1,5}(/[a-z]{1,5})?", ro in any::<bool>()
    ) {
        let text = format!("{host}:{guest}{}", if ro { ":ro" } else { "" });
        let parsed = parse_directory(&text).unwrap();
        prop_assert_eq!(parsed.host, PathBuf::from(host));
        prop_assert_eq!(parsed.guest, PathBuf::from(guest));
        prop_assert_eq!(parsed.readonly, ro);
    }
}
