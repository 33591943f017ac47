# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Each installs what it lacks, says what and why, and does nothing twice.

SHELL := /bin/sh
.DEFAULT_GOAL := help

TARGET := $(CURDIR)/target
GUEST := $(TARGET)/guest
MUSL := $(TARGET)/x86_64-unknown-linux-musl/release
AGENT := $(MUSL)/guest-agent
PROBE := $(MUSL)/uniqueness-probe
HOST := $(TARGET)/release/host-ctl
HOST_DEBUG := $(TARGET)/debug/host-ctl
FLOOR := $(TARGET)/release/restore-floor
BUILDER := $(TARGET)/release/rootfs-builder
KERNEL_CONFIG := $(TARGET)/release/kernel-config
KERNEL := $(GUEST)/vmlinuz
VMLINUX := $(GUEST)/vmlinux
INITRD := $(GUEST)/initrd.img
ROOT_DISK := $(GUEST)/root.img
ROOT_INITRD := $(GUEST)/root-initrd.img
DEMO_IMAGE := $(TARGET)/demo/redis.erofs
LAB := $(TARGET)/debug/lab
LAB_TOOLS := $(TARGET)/lab-tools
LAB_OUTPUT := $(TARGET)/lab
VIRTIOFSD_TOOLS := $(TARGET)/virtiofsd
TEST_LAB = sh tests/lab/test-lab.sh $(LAB) $(GUEST) $(LAB_TOOLS) $(LAB_OUTPUT)

RUST_SOURCES := $(shell find protocols policy guest-agent host-ctl rootfs-builder kernel-config tests -name '*.rs' -o -name Cargo.toml -o -name '*.proto') Cargo.toml Cargo.lock
STATIC := -C relocation-model=static $(if $(filter /%,$(shell $(CC) -print-file-name=libc.a)),-C target-feature=+crt-static)
export CARGO_TARGET_DIR := $(TARGET)
export TARDIGRADE_KERNEL := $(KERNEL)
export TARDIGRADE_INITRD := $(INITRD)
export TARDIGRADE_TEST_KERNEL := $(KERNEL)
export TARDIGRADE_TEST_VMLINUX := $(VMLINUX)
export ROOTFS_BUILDER := $(BUILDER)
# As it was typed: make would take a $ for itself.
export LAB_CMD := $(value CMD)

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

.PHONY: demo
demo: host image demo-image ## boot a real service once, freeze it, wake 8 unique clones
	@HOST_CTL=$(HOST) DEMO_IMAGE=$(DEMO_IMAGE) DEMO_HOME=$(TARGET)/demo/home sh tests/demo/run.sh

.PHONY: test
test: tools nextest image demo-image probe virtiofsd lab-ready ## every test: pure, in namespaces, in microVMs, in the lab; REQUIRE_ALL=1: skip none
	cargo build -q -p host-ctl
	@outcome=0; \
	sh tests/run-tests.sh $(GUEST) || outcome=$$?; \
	$(TEST_LAB) || outcome=$$?; \
	exit $$outcome

.PHONY: test-lab
test-lab: tools nextest image probe virtiofsd lab-ready ## the tests of the lab, in it; REQUIRE_ALL=1: skip none
	cargo build -q -p host-ctl
	@$(TEST_LAB)

.PHONY: test-cycles
test-cycles: export LAB_DEADLINE := $(or $(LAB_DEADLINE),86400)
test-cycles: export FILTER := $(or $(FILTER),test(/::cycles_of/))
# One VMM after the other, and a line for each cycle.
test-cycles: export LAB_RUN_OPTIONS := --no-capture
test-cycles: export LAB_PARTS := 1
test-cycles: export HOST_CTL := $(or $(HOST_CTL),$(HOST))
test-cycles: override export LAB_OPTIONS := --env CYCLES=$(or $(CYCLES),500) $(LAB_OPTIONS)
test-cycles: host test-lab ## CYCLES=500: save, restore and thaw so often on each VMM, in the lab

.PHONY: lab
lab: lab-ready ## CMD='...': run a command where KVM, vhost-vsock and taps are real
	@[ -n "$$LAB_CMD" ] || { echo "lab: say what to run: make lab CMD='...'" >&2; exit 2; }
	@$(LAB) run --kernel $(GUEST) --tools $(LAB_TOOLS)/bin --share $(LAB_OUTPUT) $(LAB_OPTIONS) -- sh -c "$$LAB_CMD"

.PHONY: lab-ready
lab-ready: tools $(KERNEL)
	@sh tests/lab/install-virtiofsd.sh $(LAB_TOOLS)
	@cargo build -q -p nested-host-lab
	@mkdir -p $(LAB_OUTPUT)

.PHONY: check
check: tools ## formatting, lints, and the rules of the house
	cargo fmt --all -- --check
	cargo fmt --manifest-path tests/fuzz/Cargo.toml -- --check
	cargo clippy -q --workspace --all-targets -- -D warnings
	cargo test -q -p tardigrade-tests --test house
	@if cargo deny --version >/dev/null 2>&1; then cargo deny --all-features check bans licenses sources; \
	else echo 'check: dependency rules not looked at: cargo-deny is missing (make deny installs it)'; fi

.PHONY: fuzz
fuzz: tools ## FUZZ_RUNS=1000000: all that is decoded, by a fuzzer; FUZZ_TARGET=name: one target
	@sh tests/fuzz/run.sh $(TARGET)

.PHONY: deny
deny: ## licences and sources of every dependency
	@cargo deny --version >/dev/null 2>&1 || { echo 'deny: installing cargo-deny (checks licences and sources)'; cargo install --locked cargo-deny; }
	cargo deny --all-features check bans licenses sources

.PHONY: bench
bench: host image demo-image probe floor bench-tools ## figures, a line each, against floors of the same run
	cargo build -q --release -p tardigrade-tests --bin bench
	@HOST_CTL=$(HOST) RESTORE_FLOOR=$(FLOOR) GUEST_AGENT=$(AGENT) DEMO_IMAGE=$(DEMO_IMAGE) $(TARGET)/release/bench

.PHONY: bench-image
bench-image: host image probe ## figures of guest images; those of our own kernel need `make kernel`
	cargo build -q --release -p tardigrade-tests --bin bench
	@HOST_CTL=$(HOST) GUEST_AGENT=$(AGENT) $(TARGET)/release/bench image

# The guests of 32 clones, their VMMs and the template fit.
.PHONY: bench-vmm
bench-vmm: export LAB_OPTIONS := $(or $(LAB_OPTIONS),--memory 6144)
bench-vmm: host image probe floor lab-ready ## figures of each VMM, in the lab; REQUIRE_ALL=1: skip none
	cargo build -q --release -p tardigrade-tests --bin bench
	@HOST_CTL=$(HOST) RESTORE_FLOOR=$(FLOOR) sh tests/lab/bench-vmms.sh $(LAB) $(GUEST) $(LAB_TOOLS) $(LAB_OUTPUT) \
		$(TARGET)/release/bench

.PHONY: agent
agent: $(AGENT) ## the static agent: target/x86_64-unknown-linux-musl/release/guest-agent

.PHONY: host
host: tools $(HOST) ## the host side: target/release/host-ctl

.PHONY: image
image: $(INITRD) $(VMLINUX) ## the guest's kernel and initrd: target/guest/

.PHONY: root-disk
root-disk: $(ROOT_DISK) $(ROOT_INITRD) ## a root disk with a hash tree, and the initrd to boot it: target/guest/

.PHONY: kernel
kernel: kernel-tools $(KERNEL_CONFIG) ## JOBS=n: the guest's own kernel, from the distribution's source: target/guest/own/
	@KERNEL_CONFIG=$(KERNEL_CONFIG) sh kernel-config/build-kernel.sh $(GUEST)/own

.PHONY: kernel-check
kernel-check: kernel-tools $(KERNEL_CONFIG) ## the fragments against the kernel's own configuration, for each machine
	@KERNEL_CONFIG=$(KERNEL_CONFIG) sh kernel-config/check-fragments.sh

.PHONY: kernel-table
kernel-table: kernel-tools $(KERNEL_CONFIG) host $(AGENT) $(BUILDER) ## FRAGMENTS='a b': what leaving each of them out saves (takes long)
	@KERNEL_CONFIG=$(KERNEL_CONFIG) sh kernel-config/measure-fragments.sh $(GUEST)/table
	cargo build -q --release -p tardigrade-tests --bin bench
	@HOST_CTL=$(HOST) GUEST_AGENT=$(AGENT) $(TARGET)/release/bench fragments

.PHONY: demo-image
demo-image: $(DEMO_IMAGE) ## a container image with redis, from the distribution's packages

.PHONY: probe
probe: $(PROBE)

.PHONY: floor
floor: $(FLOOR)

.PHONY: tools
tools:
	@sh tests/install-tools.sh

# What serves directories to guests: where the distribution's cannot, the crate's.
.PHONY: virtiofsd
virtiofsd: tools
	@sh tests/lab/install-virtiofsd.sh $(VIRTIOFSD_TOOLS) directories

.PHONY: bench-tools
bench-tools:
	@sh tests/install-tools.sh bench

.PHONY: kernel-tools
kernel-tools: tools
	@sh tests/install-tools.sh kernel

.PHONY: nextest
nextest:
	@cargo nextest --version >/dev/null 2>&1 || { echo 'test: installing cargo-nextest (runs the tests)'; cargo install --locked cargo-nextest; }

.PHONY: clean
clean: ## remove everything that was built
	rm -rf $(TARGET)

# The probe is built with the agent: both are static and share their crates.
$(AGENT) $(PROBE) &: $(RUST_SOURCES) guest-agent/build-static.sh | tools
	@sh guest-agent/build-static.sh guest-agent uniqueness-probe
	@touch $(AGENT) $(PROBE)

# Every sandbox has a supervisor, and waits for it to start: where the C library
# can be linked into it, nothing is left to be linked then. It lies at a fixed
# address, so that nothing is left to be relocated either: the pages with
# addresses in them stay shared by all supervisors, and an emulated host finds
# the code it has translated for the one before. Stack, heap and mappings are
# placed at random all the same.
$(HOST): $(RUST_SOURCES) | tools
	cargo rustc -q --release -p host-ctl --bin host-ctl -- $(STATIC)
	@touch $@

$(FLOOR): $(RUST_SOURCES) | tools
	cargo build -q --release -p hypervisor --bin restore-floor
	@touch $@

$(BUILDER): $(RUST_SOURCES) | tools
	cargo build -q --release -p rootfs-builder
	@touch $@

$(KERNEL_CONFIG): $(RUST_SOURCES) | tools
	cargo build -q --release -p kernel-config
	@touch $@

$(KERNEL): kernel-config/fetch-distro-kernel.sh | tools
	@sh kernel-config/fetch-distro-kernel.sh $(GUEST)

# The same kernel for a VMM that does not unpack it.
$(VMLINUX): $(KERNEL) $(KERNEL_CONFIG)
	$(KERNEL_CONFIG) vmlinux $(KERNEL) --output $@

$(INITRD): $(AGENT) $(BUILDER) $(KERNEL)
	$(BUILDER) initrd --agent $(AGENT) --modules $(GUEST)/modules --module virtiofs \
		--kernel-config $(GUEST)/config --manifest $@.json --output $@

$(ROOT_DISK): $(AGENT) $(BUILDER) $(KERNEL)
	$(BUILDER) image --agent $(AGENT) --kernel $(KERNEL) --kernel-config $(GUEST)/config --layout verity --output $@

$(ROOT_INITRD): $(AGENT) $(BUILDER) $(KERNEL)
	$(BUILDER) initrd --agent $(AGENT) --modules $(GUEST)/modules --module dm_verity \
		--kernel $(KERNEL) --kernel-config $(GUEST)/config --manifest $@.json --output $@

$(DEMO_IMAGE): tests/demo/build-image.sh $(BUILDER) | tools
	@sh tests/demo/build-image.sh $(TARGET)/demo
	@touch $@
