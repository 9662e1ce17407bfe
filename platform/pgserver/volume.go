package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/marquee-ads/marquee/platform/files"
)

// What the volume holds.
const (
	dataName   = "data"     // Postgres's own folder (PGDATA)
	newName    = "data.new" // the same while initdb makes it
	runName    = "run"      // the socket's folder
	lockName   = "lock"     // held by Postgres and all its children
	markerName = "database" // says which database the volume holds
)

// volume is the folder of one Postgres.
type volume struct {
	cfg  Config
	who  identity
	lock *os.File
}

func (v volume) path(name string) string { return filepath.Join(v.cfg.DataDir, name) }
func (v volume) data() string            { return v.path(dataName) }
func (v volume) socketDir() string       { return v.path(runName) }

// command is one of Postgres's programs with an environment that holds nothing
// of ours: neither secrets nor PG* variables. It inherits the lock.
func (v volume) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(v.cfg.BinDir, program), args...) //nolint:noctx // identity.run ends it with the context; the postmaster must be asked to stop, not killed
	cmd.Env = []string{"PATH=" + v.cfg.BinDir + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.ExtraFiles = []*os.File{v.lock}
	return cmd
}

// takeLock waits until no other Postgres uses the volume. The lock is inherited
// by Postgres and its children, so that it lasts as long as any of them does,
// even when the process that took it was killed.
func takeLock(ctx context.Context, path string, log hclog.Logger) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	const held = "another Postgres still uses the data folder"
	lock, err := files.Lock(ctx, path, func() { log.Info(held+"; waiting for it to end", "lock", path) })
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", held, err)
	}
	return lock, err
}

// prepare leaves a data folder of the right version that belongs to the right
// user, or says why it cannot.
func (v volume) prepare(ctx context.Context) error {
	binaries, err := v.binariesVersion(ctx)
	if err != nil {
		return err
	}
	marker, err := os.ReadFile(v.path(markerName))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("reading which database the volume holds: %w", err)
	}
	if held := strings.TrimSpace(string(marker)); held != "" && held != v.cfg.Database {
		return fmt.Errorf("the volume %s holds the database %q, not %q: give each Postgres a data folder of its own", v.cfg.DataDir, held, v.cfg.Database)
	}
	if err := v.who.own(v.cfg.DataDir); err != nil {
		return err
	}

	version, err := os.ReadFile(filepath.Join(v.data(), "PG_VERSION"))
	switch {
	case err == nil:
		if made := strings.TrimSpace(string(version)); made != binaries {
			return fmt.Errorf("the data in %s was made by Postgres %s and the binaries in %s are version %s: run binaries of version %s, or move the data with pg_upgrade or pg_dump",
				v.data(), made, v.cfg.BinDir, binaries, made)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("reading the version of the data: %w", err)
	case marker != nil:
		return fmt.Errorf("the volume %s held the database %q and its data is gone: restore it from a backup, or remove %s to begin with an empty database",
			v.cfg.DataDir, v.cfg.Database, v.path(markerName))
	case v.cfg.HasData:
		return fmt.Errorf("the volume %s is empty, and the database %q was in use before: bring back the machine or the volume that has its data, or restore a backup to %s",
			v.cfg.DataDir, v.cfg.Database, v.data())
	default:
		if err := v.create(ctx); err != nil {
			return err
		}
	}

	if err := os.MkdirAll(v.socketDir(), 0o700); err != nil {
		return fmt.Errorf("making the socket's folder: %w", err)
	}
	if err := os.Chmod(v.socketDir(), 0o700); err != nil {
		return fmt.Errorf("closing the socket's folder to others: %w", err)
	}
	if err := v.who.own(v.cfg.DataDir); err != nil {
		return err
	}
	if marker == nil {
		return v.write(markerName, v.cfg.Database+"\n")
	}
	return nil
}

// binariesVersion is the binaries' major version, for example "15".
func (v volume) binariesVersion(ctx context.Context) (string, error) {
	cmd := v.command("postgres", "--version")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := v.who.run(ctx, cmd); err != nil {
		return "", fmt.Errorf("asking the binaries in %s for their version: %w: %s", v.cfg.BinDir, err, bytes.TrimSpace(out.Bytes()))
	}
	// "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", "... 18beta1"
	words := strings.Fields(out.String())
	if len(words) < 3 {
		return "", fmt.Errorf("the version of the binaries in %s is not understood: %q", v.cfg.BinDir, out.String())
	}
	digits := strings.IndexFunc(words[2]+".", func(r rune) bool { return r < '0' || r > '9' })
	return words[2][:digits], nil
}

// create makes the data folder under another name and renames it when it is
// whole, so that an initdb that was killed leaves nothing that looks like data.
func (v volume) create(ctx context.Context) error {
	entries, err := os.ReadDir(v.cfg.DataDir)
	if err != nil {
		return fmt.Errorf("reading the data folder: %w", err)
	}
	for _, e := range entries {
		if !slices.Contains([]string{newName, runName, lockName, "lost+found"}, e.Name()) {
			return fmt.Errorf("the data folder %s is not empty (it holds %q) and is no volume of Postgres: give an empty folder, or the one that holds the data", v.cfg.DataDir, e.Name())
		}
	}
	if err := os.RemoveAll(v.path(newName)); err != nil {
		return fmt.Errorf("removing what an interrupted initdb left: %w", err)
	}
	v.cfg.Log.Info("making a new database cluster", "folder", v.data())
	args := []string{
		"-D", v.path(newName), "--username=" + superuser, "--encoding=UTF8",
		// Sorting by bytes does not change under an index when the system's
		// C library is updated, and every build of Postgres has it.
		"--locale=C",
		"--data-checksums", "--auth=reject", "--no-instructions",
	}
	if v.cfg.Test {
		args = append(args, "--no-sync")
	}
	cmd := v.command("initdb", args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := v.who.run(ctx, cmd); err != nil {
		return fmt.Errorf("making the data folder with initdb: %w: %s", err, bytes.TrimSpace(out.Bytes()))
	}
	if err := os.Rename(v.path(newName), v.data()); err != nil {
		return fmt.Errorf("putting the new data folder into its place: %w", err)
	}
	return v.sync()
}

// writeHBA lets the one role into its database with a password, and nobody else
// into anything.
func (v volume) writeHBA() error {
	rules := fmt.Sprintf("# Written on every start.\nlocal %q %q scram-sha-256\n", v.cfg.Database, v.cfg.Role)
	if v.cfg.Test {
		rules = "# Written on every start: a server for tests.\nlocal all all trust\n"
	}
	return v.write(filepath.Join(dataName, "pg_hba.conf"), rules)
}

// write replaces a file of the volume whole or not at all.
func (v volume) write(name, text string) error {
	tmp := v.path(name + ".new")
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	if err := v.who.chown(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, v.path(name)); err != nil {
		return fmt.Errorf("writing %s: %w", name, err)
	}
	return v.sync()
}

// sync makes renames in the volume last.
func (v volume) sync() error {
	if v.cfg.Test {
		return nil
	}
	for _, dir := range []string{v.cfg.DataDir, v.data()} {
		f, err := os.Open(dir)
		if err != nil {
			return fmt.Errorf("syncing the data folder: %w", err)
		}
		err = f.Sync()
		f.Close()
		if err != nil {
			return fmt.Errorf("syncing the data folder: %w", err)
		}
	}
	return nil
}
