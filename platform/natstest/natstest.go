// Package natstest runs real NATS servers with JetStream for a test.
package natstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/marquee-ads/marquee/platform/freeport"
	"github.com/marquee-ads/marquee/platform/tools"
)

const (
	buildTimeout = 5 * time.Minute // from cold it builds the server first
	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
	// logTail is how much of the server's log a failed test prints, in bytes.
	logTail = 8 << 10
)

// Server is one NATS server on loopback, without log-in, with a store of its
// own. Its methods fail the test themselves and may be called from the test's
// goroutine only.
type Server struct {
	// Address is host:port for clients. It stays the same over Restart.
	Address string

	tb     testing.TB
	binary string
	dir    string
	args   []string

	mu      sync.Mutex
	process *os.Process
	exited  chan struct{}
}

// Start runs a server until the test ends and returns when JetStream answers.
// extra are further lines of its configuration. Its log is printed when the
// test fails.
func Start(tb testing.TB, extra ...string) *Server {
	tb.Helper()
	binary := find(tb)
	s := &Server{tb: tb, binary: binary, dir: tb.TempDir()}
	if err := s.configure(extra); err != nil {
		tb.Fatalf("natstest: %v", err)
	}
	tb.Cleanup(s.cleanup)
	if err := s.launch(); err != nil {
		tb.Fatalf("natstest: start nats-server: %v", err)
	}
	if err := s.waitReady(); err != nil {
		tb.Fatalf("natstest: start nats-server: %v", err)
	}
	return s
}

// Cluster runs servers that keep streams on several of them, and returns when
// they have a leader.
func Cluster(tb testing.TB, servers int) []*Server {
	tb.Helper()
	binary := find(tb)
	ports, err := freeport.Take(servers)
	if err != nil {
		tb.Fatalf("natstest: %v", err)
	}
	routes := make([]string, servers)
	for i := range routes {
		routes[i] = "127.0.0.1:" + strconv.Itoa(ports[i])
	}
	list := make([]*Server, servers)
	for i := range list {
		list[i] = &Server{tb: tb, binary: binary, dir: tb.TempDir()}
		lines := []string{
			fmt.Sprintf("server_name: s%d", i+1),
			fmt.Sprintf("cluster { name: test, listen: %q, routes: [\"nats://%s\"], no_advertise: true }", routes[i], strings.Join(routes, `", "nats://`)),
		}
		if err := list[i].configure(lines); err != nil {
			tb.Fatalf("natstest: %v", err)
		}
		tb.Cleanup(list[i].cleanup)
		if err := list[i].launch(); err != nil {
			tb.Fatalf("natstest: start nats-server: %v", err)
		}
	}
	for _, s := range list {
		if err := s.waitReady(); err != nil {
			tb.Fatalf("natstest: start a cluster: %v", err)
		}
	}
	return list
}

// Kill ends the server at once with SIGKILL, as a crash would, and returns when
// the process is gone.
func (s *Server) Kill() {
	s.tb.Helper()
	if !s.end(syscall.SIGKILL) {
		s.tb.Fatal("natstest: nats-server does not end")
	}
}

// Restart runs the server again after Kill, with the same data and address, and
// returns when JetStream answers.
func (s *Server) Restart() {
	s.tb.Helper()
	if err := s.launch(); err != nil {
		s.tb.Fatalf("natstest: restart nats-server: %v", err)
	}
	if err := s.waitReady(); err != nil {
		s.tb.Fatalf("natstest: restart nats-server: %v", err)
	}
}

func find(tb testing.TB) string {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	path, err := tools.Ensure(ctx, tools.NatsServer, func(line string) { tb.Log(line) })
	if err != nil {
		tb.Fatalf("natstest: find the server: %v", err)
	}
	return path
}

func (s *Server) configure(extra []string) error {
	ports, err := freeport.Take(1)
	if err != nil {
		return err
	}
	s.Address = "127.0.0.1:" + strconv.Itoa(ports[0])
	lines := append([]string{
		fmt.Sprintf("listen: %q", s.Address),
		fmt.Sprintf("jetstream { store_dir: %q, max_memory_store: 64MB, max_file_store: 1GB, sync_interval: always }", filepath.Join(s.dir, "store")),
		fmt.Sprintf("log_file: %q", s.logPath()),
	}, extra...)
	path := filepath.Join(s.dir, "nats.conf")
	s.args = []string{"--config", path}
	return os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600)
}

func (s *Server) launch() error {
	cmd := exec.Command(s.binary, s.args...)
	cmd.Dir = s.dir
	// What the test's environment says to NATS is not for this one.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + s.dir}
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", s.binary, err)
	}
	exited := make(chan struct{})
	s.mu.Lock()
	s.process, s.exited = cmd.Process, exited
	s.mu.Unlock()
	go func() {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in its log
	}()
	return nil
}

func (s *Server) waitReady() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	reason := errors.New("not asked yet")
	for {
		select {
		case <-s.exited:
			return errors.New("the server ended while it started; its log is below")
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w", startTimeout, reason)
		case <-tick.C:
		}
		if reason = s.ready(ctx); reason == nil {
			return nil
		}
	}
}

func (s *Server) ready(ctx context.Context) error {
	conn, err := nats.Connect(s.Address, nats.Timeout(time.Second), nats.NoReconnect())
	if errors.Is(err, nats.ErrAuthorization) {
		return nil // extra lines have users: it listens
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	js, err := jetstream.New(conn)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	_, err = js.AccountInfo(ctx)
	return err
}

// end ends the process and says whether it is gone.
func (s *Server) end(sig syscall.Signal) bool {
	s.mu.Lock()
	process, exited := s.process, s.exited
	s.mu.Unlock()
	if process == nil {
		return true
	}
	_ = process.Signal(sig) // an error means that it has ended already
	select {
	case <-exited:
		return true
	case <-time.After(stopTimeout):
		return false
	}
}

func (s *Server) cleanup() {
	if !s.end(syscall.SIGKILL) {
		s.tb.Error("natstest: nats-server does not end")
	}
	if s.tb.Failed() {
		s.tb.Logf("log of the NATS server at %s:\n%s", s.Address, s.log())
	}
}

func (s *Server) logPath() string { return filepath.Join(s.dir, "log") }

// log is the end of what the server wrote.
func (s *Server) log() string {
	text, _ := os.ReadFile(s.logPath()) // absent when it wrote nothing
	return string(text[max(0, len(text)-logTail):])
}
