# Everything but `bench` is built with one profile, `ci` (Cargo.toml), and for the whole workspace at once: another
# choice of packages (`-p`) would select other features and so build dependencies a second time.

CARGO ?= cargo
RUN = $(CARGO) run --quiet --profile ci --bin

# Either would take the place of what .cargo/config.toml says, without which programs are not static and no image starts.
unexport RUSTFLAGS CARGO_ENCODED_RUSTFLAGS

.DEFAULT_GOAL := help
.PHONY: help setup build demo kube bench test soak mutants quick lint readme

help:
	@echo 'make setup    find, install or build what the build and the tests need'
	@echo 'make build    build cairn, cairn-node and cairn-operator'
	@echo 'make demo     four nodes in three zones on this machine: upload, lose a node, compare every byte'
	@echo 'make kube     the same on a real Kubernetes with three kubelets on this machine (as root)'
	@echo 'make bench    how fast a cluster is on this machine, beside what the machine can do; ARGS=--help says more'
	@echo 'make test     everything, in stages; ends with what passed, failed and was skipped'
	@echo 'make soak     200 rounds of kill -9 on each store, and 20,000 simulated histories: about three hours'
	@echo 'make mutants  plant known bugs one by one in a copy, and see the simulator find each: about an hour; ONLY=name for one'
	@echo 'make quick    formatting, unit tests and the rules of the repository: a few minutes at most'
	@echo 'make lint     rustfmt and clippy'
	@echo 'make readme   write the table of promises into README.md'

setup:
	@.ci/setup

build:
	@.ci/setup build
	$(CARGO) build --profile ci --workspace --bins

demo: build
	@$(RUN) demo

kube: build
	@$(RUN) kube

# Optimised, and so built a second time; only the two programs that are measured: linking each takes minutes.
bench:
	@.ci/setup build
	$(CARGO) build --release --workspace --bin cairn-node --bin bench
	@$(CARGO) run --quiet --release --bin bench -- $(ARGS)

test:
	@.ci/stages test

soak:
	@.ci/stages soak

mutants:
	@.ci/setup build
	@.ci/mutants $(ONLY)

quick:
	@.ci/stages quick

lint:
	@.ci/stages lint

readme:
	UPDATE=1 $(CARGO) test --quiet --profile ci --workspace --test tidy -- --exact the_readme_lists_what_is_promised
