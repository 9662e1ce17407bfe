// Package pgtest gives tests a real Postgres: one server for a test binary and
// a fresh database for each test.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/marquee-ads/marquee/platform/pgserver"
	"github.com/marquee-ads/marquee/platform/tools"
)

const (
	role         = "test"
	startTimeout = 3 * time.Minute // from cold it fetches Postgres first
	dirPrefix    = "marquee-pg-"
)

// Server is a Postgres for tests, without durability. Its zero value is ready:
// the first use starts it. A test binary with several tests shares one:
//
//	var pg pgtest.Server
//
//	func TestMain(m *testing.M) { os.Exit(pg.Main(m)) }
//
//	func TestSomething(t *testing.T) { conn, err := pgx.Connect(ctx, pg.Database(t)) … }
type Server struct {
	mu     sync.Mutex
	dir    string
	config pgserver.Config
	server *pgserver.Server
	made   int
}

// Main runs the tests, then stops the server if a test has used it and removes
// its folder. It returns the exit code for os.Exit.
func (s *Server) Main(m *testing.M) int {
	code := m.Run()
	if err := s.close(); err != nil {
		fmt.Fprintln(os.Stderr, "pgtest:", err)
		return max(code, 1)
	}
	return code
}

// Start starts a server of the test's own, for tests that stop it on the way;
// it is stopped and removed when the test ends.
func Start(tb testing.TB) *Server {
	tb.Helper()
	s := &Server{}
	s.use(tb)
	tb.Cleanup(func() {
		if err := s.close(); err != nil {
			tb.Errorf("pgtest: %v", err)
		}
	})
	return s
}

// Database makes an empty database for the test and returns how pgx connects to
// it as its owner, an ordinary role. It is dropped when the test ends.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	s.use(tb)
	s.mu.Lock()
	s.made++
	name := "test_" + strconv.Itoa(s.made)
	s.mu.Unlock()
	s.admin(tb, "CREATE DATABASE "+name+" OWNER "+role+" TEMPLATE template0")
	tb.Cleanup(func() {
		s.mu.Lock()
		running := s.server != nil
		s.mu.Unlock()
		if running {
			s.admin(tb, "DROP DATABASE "+name+" WITH (FORCE)")
		}
	})
	return s.url(role, name)
}

// SocketDir is the folder of the server's Unix socket, with a short path.
func (s *Server) SocketDir(tb testing.TB) string {
	tb.Helper()
	return s.use(tb).SocketDir()
}

// Stop stops the server as an outage would; Restart ends the outage. The data stays.
func (s *Server) Stop(tb testing.TB) {
	tb.Helper()
	server := s.use(tb)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := server.Stop(); err != nil {
		tb.Fatalf("pgtest: %v", err)
	}
	s.server = nil
}

// Restart starts a stopped server again, on the same socket and data.
func (s *Server) Restart(tb testing.TB) {
	tb.Helper()
	s.use(tb)
}

func (s *Server) url(user, database string) string {
	query := url.Values{"host": {filepath.Join(s.dir, "pg", "run")}, "user": {user}}
	return "postgres:///" + database + "?" + query.Encode()
}

// admin runs a statement as the superuser.
func (s *Server) admin(tb testing.TB, statement string) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url("postgres", "postgres"))
	if err != nil {
		tb.Fatalf("pgtest: connecting: %v", err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		tb.Fatalf("pgtest: %s: %v", statement, err)
	}
}

// use returns the running server, and starts it when it is not.
func (s *Server) use(tb testing.TB) *pgserver.Server {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		return s.server
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if s.dir == "" {
		if err := s.prepare(ctx, tb); err != nil {
			tb.Fatalf("pgtest: %v", err)
		}
	}
	server, err := pgserver.Start(ctx, s.config)
	if err != nil {
		log, _ := os.ReadFile(filepath.Join(s.dir, "log")) // absent when it wrote nothing
		tb.Fatalf("pgtest: starting Postgres: %v\n%s", err, log)
	}
	s.server = server
	return server
}

func (s *Server) prepare(ctx context.Context, tb testing.TB) error {
	bin, err := tools.Ensure(ctx, tools.Postgres, func(line string) { tb.Log(line) })
	if err != nil {
		return err
	}
	removeLeftovers()
	// Not tb.TempDir: its path is too long for a socket, and the server outlives
	// the test that starts it.
	dir, err := os.MkdirTemp("", dirPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	s.dir = dir
	s.config = pgserver.Config{
		BinDir: bin, DataDir: filepath.Join(dir, "pg"), Role: role, Database: role,
		Settings: map[string]string{"max_connections": "300", "shared_buffers": "32MB"},
		Test:     true, Output: log,
	}
	return nil
}

// removeLeftovers removes the folders of test binaries that were killed. Their
// Postgres got a signal to end when they did.
func removeLeftovers() {
	found, _ := filepath.Glob(filepath.Join(os.TempDir(), dirPrefix+"*")) // only a bad pattern fails
	for _, dir := range found {
		pid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), dirPrefix), "-")
		if n, err := strconv.Atoi(pid); err == nil && errors.Is(syscall.Kill(n, 0), syscall.ESRCH) {
			_ = os.RemoveAll(dir) // another user's: left to them
		}
	}
}

func (s *Server) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.server != nil {
		err = s.server.Stop()
		s.server = nil
	}
	if s.dir != "" {
		err = errors.Join(err, os.RemoveAll(s.dir))
		s.dir = ""
	}
	return err
}
