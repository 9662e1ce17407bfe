// Package pgserver runs a real Postgres from its binaries in the foreground:
// it makes the data folder once, sees to the one role and its database, listens
// on a Unix socket and on no TCP port, and stops with its caller.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
)

// How long each step of a start and a stop may take. Crash recovery happens in
// single-user mode before the start proper and is bounded by the context alone.
const (
	lockTimeout  = 60 * time.Second
	readyTimeout = 60 * time.Second
	fastStop     = 30 * time.Second
	hardStop     = 10 * time.Second
)

// Config says what to run and where.
type Config struct {
	// BinDir holds initdb and postgres, version 15 or newer.
	BinDir string
	// DataDir is the volume: Postgres's own folder is DataDir/data, its socket
	// is in DataDir/run. It is made when it does not exist.
	DataDir string
	// Role may log in, is no superuser, and owns Database; it is the only one
	// that is let in. Both are made when they do not exist. Lower-case letters,
	// digits, - and _.
	Role     string
	Database string
	// PasswordFile holds the role's password on its first line; it is set on
	// every start, so that a new password takes effect with a restart.
	PasswordFile string
	// User is the system user that Postgres runs as when the process is root,
	// because Postgres refuses to run as root; "nobody" when empty. Its
	// ownership of the data folder is seen to. Ignored when not root.
	User string
	// HasData says that this database was in use before: an empty data folder is
	// then the wrong one, and refused instead of filled with an empty database.
	HasData bool
	// Settings are further configuration parameters of Postgres.
	Settings map[string]string
	// Test gives durability and access control up for speed: nothing is synced
	// to disk, and whoever can reach the socket may use every database as any
	// role, the superuser "postgres" among them.
	Test bool
	// Log receives what this package does; Output what Postgres writes
	// (os.Stderr when nil).
	Log    hclog.Logger
	Output io.Writer
}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,62}$`)

func (c Config) validate() error {
	for _, f := range []struct{ name, value string }{{"Role", c.Role}, {"Database", c.Database}} {
		if !namePattern.MatchString(f.value) || strings.HasPrefix(f.value, "pg_") {
			return fmt.Errorf("%s %q: want lower-case letters, digits, - and _, beginning with a letter and not with pg_", f.name, f.value)
		}
	}
	if c.Role == superuser || slices.Contains([]string{"postgres", "template0", "template1"}, c.Database) {
		return fmt.Errorf("role %q and database %q: postgres, template0 and template1 belong to Postgres itself", c.Role, c.Database)
	}
	if c.BinDir == "" || c.DataDir == "" {
		return errors.New("the binaries' and the data folder must be given")
	}
	return nil
}

// Server is a running Postgres.
type Server struct {
	postmaster *exec.Cmd
	ended      chan struct{} // closed once waitErr is set
	waitErr    error
	lock       *os.File
	socketDir  string
	log        hclog.Logger
}

// Start makes the data folder on the first start, sees to role and database,
// and returns once Postgres accepts connections. ctx bounds the start only; a
// folder that another Postgres still uses is waited for. It refuses a folder
// that held data and has lost it, one that holds something else, one of another
// major version, and an empty one when the database HasData.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = hclog.NewNullLogger()
	}
	if cfg.Output == nil {
		cfg.Output = os.Stderr
	}
	var err error
	if cfg.DataDir, err = filepath.Abs(cfg.DataDir); err != nil {
		return nil, fmt.Errorf("finding the data folder: %w", err)
	}
	if cfg.BinDir, err = filepath.Abs(cfg.BinDir); err != nil {
		return nil, fmt.Errorf("finding the binaries: %w", err)
	}
	password, err := readPassword(cfg)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(cfg.DataDir), 0o755); err != nil {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	if err := os.Mkdir(cfg.DataDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("making the data folder: %w", err)
	}
	who, err := runAs(cfg)
	if err != nil {
		return nil, err
	}
	lock, err := takeLock(ctx, filepath.Join(cfg.DataDir, lockName), cfg.Log)
	if err != nil {
		return nil, err
	}
	s, err := start(ctx, cfg, who, lock, password)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return s, nil
}

func start(ctx context.Context, cfg Config, who identity, lock *os.File, password string) (*Server, error) {
	v := volume{cfg: cfg, who: who, lock: lock}
	if err := v.prepare(ctx); err != nil {
		return nil, err
	}
	if err := v.writeHBA(); err != nil {
		return nil, err
	}
	if err := v.ensureRole(ctx, password); err != nil {
		return nil, err
	}

	cmd := v.command("postgres", append([]string{"-D", v.data()}, v.settings()...)...)
	cmd.Stdout, cmd.Stderr = cfg.Output, cfg.Output
	s := &Server{postmaster: cmd, ended: make(chan struct{}), lock: lock, socketDir: v.socketDir(), log: cfg.Log}
	ended, err := who.start(cmd)
	if err != nil {
		return nil, fmt.Errorf("starting Postgres: %w", err)
	}
	go func() {
		s.waitErr = <-ended
		close(s.ended)
	}()
	if err := s.waitReady(ctx, filepath.Join(v.data(), "postmaster.pid")); err != nil {
		if !s.hasEnded() {
			err = errors.Join(err, s.Stop())
		}
		return nil, err
	}
	cfg.Log.Info("Postgres accepts connections", "socket", s.socketDir, "database", cfg.Database, "pid", cmd.Process.Pid)
	return s, nil
}

// settings are Postgres's parameters as arguments; ours beat the file's.
func (v volume) settings() []string {
	set := map[string]string{
		"listen_addresses": "",
		// Relative to Postgres's own folder: the path of a Unix socket is
		// limited to 107 bytes, the path of an allocation is not.
		"unix_socket_directories": "../" + runName,
		"unix_socket_permissions": "0700",
		"password_encryption":     "scram-sha-256",
		"logging_collector":       "off",
		"log_destination":         "stderr",
		"log_line_prefix":         "%m [%p] %u ",
		"log_timezone":            "UTC",
		"timezone":                "UTC",
		"cluster_name":            v.cfg.Database,
	}
	if v.cfg.Test {
		maps.Copy(set, map[string]string{"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"})
	}
	maps.Copy(set, v.cfg.Settings)
	args := make([]string, 0, 2*len(set))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		args = append(args, "-c", name+"="+set[name])
	}
	return args
}

// waitReady waits for the line that Postgres writes into its pid file for
// pg_ctl once it accepts connections.
func (s *Server) waitReady(ctx context.Context, pidFile string) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		text, _ := os.ReadFile(pidFile) // absent until Postgres has begun
		lines := strings.Split(string(text), "\n")
		if len(lines) > 7 && lines[0] == strconv.Itoa(s.postmaster.Process.Pid) && strings.TrimSpace(lines[7]) == "ready" {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.ended:
			return fmt.Errorf("the new Postgres ended before it accepted connections (its output says why): %w", s.Wait())
		case <-ctx.Done():
			return fmt.Errorf("waiting for Postgres to accept connections: %w", ctx.Err())
		}
	}
}

// SocketDir is the folder of the Unix socket (.s.PGSQL.5432), mode 0700. As a
// socket's path is limited to 107 bytes, connect from within the folder or
// through a shorter path to it when it is deep.
func (s *Server) SocketDir() string { return s.socketDir }

// Pid is the process id of the postmaster.
func (s *Server) Pid() int { return s.postmaster.Process.Pid }

// Wait returns when Postgres has ended: nil after an orderly stop, an error
// that wraps *exec.ExitError otherwise.
func (s *Server) Wait() error {
	<-s.ended
	s.lock.Close()
	if s.waitErr != nil {
		return fmt.Errorf("the Postgres process: %w", s.waitErr)
	}
	return nil
}

func (s *Server) hasEnded() bool {
	select {
	case <-s.ended:
		return true
	default:
		return false
	}
}

// Stop shuts Postgres down and returns when it has ended. It breaks open
// connections off and writes a checkpoint (a fast shutdown), for at most 30 s,
// after which it does not wait for the checkpoint (an immediate one).
func (s *Server) Stop() error {
	for _, step := range []struct {
		signal  os.Signal
		timeout time.Duration
	}{{syscall.SIGINT, fastStop}, {syscall.SIGQUIT, hardStop}, {syscall.SIGKILL, hardStop}} {
		if err := s.postmaster.Process.Signal(step.signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("sending %s to Postgres: %w", step.signal, err)
		}
		timer := time.NewTimer(step.timeout)
		select {
		case <-s.ended:
			timer.Stop()
			return s.Wait()
		case <-timer.C:
			s.log.Warn("Postgres does not stop", "signal", step.signal.String(), "waited", step.timeout)
		}
	}
	return errors.New("stopping Postgres: it did not end, not even on SIGKILL")
}

// Run starts Postgres and runs it until ctx ends, which stops it in an orderly
// way, or until it ends by itself, which is an error that wraps *exec.ExitError.
func Run(ctx context.Context, cfg Config) error {
	s, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		s.log.Info("stopping Postgres")
		return s.Stop()
	case <-s.ended:
		if err := s.Wait(); err != nil {
			return err
		}
		// Somebody else's signal to the postmaster: orderly, but not asked for here.
		return errors.New("the Postgres process was stopped by somebody else")
	}
}
