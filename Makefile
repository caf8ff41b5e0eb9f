# What each target does: "make help". Everything works as root or as an ordinary user with sudo, and CARGO_TARGET_DIR is respected.

SHELL := /bin/bash
PREFIX ?= /usr/local
# rustup's own directory, which a shell that is no login shell does not always have.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
target := $(or $(CARGO_TARGET_DIR),target)
# The servers that the tests run against; asked for only after scripts/setup has installed them.
with-servers = servers=$$(scripts/setup --print-env) && eval "$$servers"

# The tests of the directory repository that "make soak" runs on S3 too, encrypted.
on-s3 = restore:: in_place:: rejoin:: drill:: trust:: ledger:: partition:: partition_interrupted:: schedule:: schedule_failover::
# Those of restores that it runs from a copy in another repository too, with the first one lost. Left out: a standby is made anew and a cluster goes back
# in its own place (in_place::) from its first repository alone, and the restore by hand has a directory of its own.
from-a-copy = restore:: drill:: --skip a_standby_is_made_anew --skip a_backup_is_restored_by_hand

.DEFAULT_GOAL := help
.PHONY: help demo demo-s3 demo-down build test soak bench bench-backup bench-roles lint install

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

demo: ## install what is missing, build, and show a herd being made, broken and mended
	scripts/setup
	cargo build --release --locked
	scripts/demo

demo-s3: ## the same with WAL and backups in a bucket of a real S3 server, encrypted
	scripts/setup --s3
	cargo build --release --locked
	scripts/demo --s3

demo-down: ## stop the demo's servers and remove what it made
	scripts/demo --down

build: ## build the release binary
	cargo build --release --locked

test: ## install what is missing, lint, and run every test against PostgreSQL of the system, the oldest and the newest
	scripts/setup --test
	$(MAKE) --no-print-directory lint
	$(with-servers) && scripts/test

soak: ## run the tests with their full counts of faults and kills
	scripts/setup --test
	$(with-servers) && PGHERD_SOAK=1 scripts/test
	$(with-servers) && PGHERD_TEST_REPOSITORY=s3-encrypted cargo test --locked --test pg -- $(on-s3)
	$(with-servers) && PGHERD_TEST_REPOSITORY=copy cargo test --locked --test pg -- $(from-a-copy)

bench: ## measure
	cargo build --release --locked
	cargo bench --locked
	scripts/bench

bench-backup: ## measure a full backup and the WAL archive beside pgBackRest, and what nobody can be faster than
	scripts/setup --bench
	cargo build --release --locked
	scripts/bench-backup
	scripts/bench-wal

bench-roles: ## measure what clients see of switchovers and failovers, through PgBouncer and directly
	cargo build --release --locked
	scripts/bench-roles

lint: ## check the format, and deny every warning of rustc and clippy
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

install: ## put the release binary into PREFIX/bin (/usr/local), below DESTDIR if that is set
	test -x $(target)/release/pgherd || $(MAKE) --no-print-directory build
	install -D -m 0755 $(target)/release/pgherd $(DESTDIR)$(PREFIX)/bin/pgherd
