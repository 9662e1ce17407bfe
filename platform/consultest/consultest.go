// Package consultest runs a real Consul agent for a test and breaks the way to
// it on demand.
package consultest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/marquee-ads/marquee/platform/freeport"
)

// ManagementToken is the initial management token of an agent with ACLs.
const ManagementToken = "6d0b1f0e-6f1e-4c55-9d0c-5a2f7f1c3b11"

const (
	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
	// logTail is how much of the agent's log a failed test prints, in bytes.
	logTail = 16 << 10
)

// Agent is one Consul server with a data directory of its own, on loopback. Its
// methods fail the test themselves and may be called from the test's goroutine
// only, except where they say otherwise.
type Agent struct {
	// Client talks to the agent, with the management token where ACLs are on.
	Client *api.Client
	// Address is host:port of the HTTP API; GRPCAddress that of the gRPC (xDS)
	// port. Both stay the same over Restart.
	Address     string
	GRPCAddress string
	// Token is the management token; empty without ACLs.
	Token string
	// Dir holds the agent's configuration, data and log. It ends with the test.
	Dir string

	tb     testing.TB
	binary string
	ports  ports
	acl    bool
	// started is set once the agent has answered: from then on Client and ports stay.
	started bool

	mu      sync.Mutex
	process *os.Process
	exited  chan struct{}
}

type ports struct {
	http, grpc, server, serf int
}

// Option changes how Start sets the agent up.
type Option func(*Agent)

// WithACL starts the agent with ACLs on and default deny. Agent.Client then uses
// the management token, which is also Agent.Token.
func WithACL() Option {
	return func(a *Agent) { a.acl = true; a.Token = ManagementToken }
}

// Start runs an agent until the test ends and returns when it has a leader and
// Connect has its root certificate, two to three seconds later (Raft's own
// time-outs). The agent's log is printed when the test fails.
func Start(tb testing.TB, opts ...Option) *Agent {
	tb.Helper()
	a := &Agent{tb: tb, binary: findConsul(tb), Dir: tb.TempDir()}
	for _, opt := range opts {
		opt(a)
	}
	tb.Cleanup(a.cleanup)

	chosen, err := freeport.Take(4)
	if err != nil {
		tb.Fatalf("consultest: %v", err)
	}
	a.ports = ports{http: chosen[0], grpc: chosen[1], server: chosen[2], serf: chosen[3]}
	a.Address = fmt.Sprintf("127.0.0.1:%d", a.ports.http)
	a.GRPCAddress = fmt.Sprintf("127.0.0.1:%d", a.ports.grpc)
	if err := a.launch(); err != nil {
		tb.Fatalf("consultest: start consul: %v", err)
	}
	return a
}

// Kill ends the agent at once with SIGKILL, as a crash would, and returns when
// the process is gone.
func (a *Agent) Kill() {
	a.tb.Helper()
	a.end(syscall.SIGKILL)
}

// Stop ends the agent gracefully with SIGTERM and returns when the process is
// gone.
func (a *Agent) Stop() {
	a.tb.Helper()
	a.end(syscall.SIGTERM)
}

// Restart runs the agent again after Kill or Stop, or kills it first, with the
// same data and ports, and returns when it has a leader. It remembers the
// services that registered with it; see Forget.
func (a *Agent) Restart() {
	a.tb.Helper()
	if a.running() {
		a.Kill()
	}
	if err := a.launch(); err != nil {
		a.tb.Fatalf("consultest: restart consul: %v", err)
	}
}

// Forget removes the stopped agent's local registrations, so that after Restart
// it knows none of the services that registered with it: what a replaced machine
// or a lost disk looks like to them.
func (a *Agent) Forget() {
	a.tb.Helper()
	if a.running() {
		a.tb.Fatal("consultest: Forget needs a stopped agent: call Kill or Stop first")
	}
	for _, dir := range []string{"services", "checks"} {
		if err := os.RemoveAll(filepath.Join(a.Dir, "data", dir)); err != nil {
			a.tb.Fatalf("consultest: forget registrations: %v", err)
		}
	}
}

func (a *Agent) launch() error {
	config, err := a.writeConfig()
	if err != nil {
		return err
	}
	logFile, err := os.OpenFile(a.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open the agent's log: %w", err)
	}
	defer logFile.Close()

	cmd := exec.Command(a.binary, "agent", "-config-file="+config)
	cmd.Dir = a.Dir
	cmd.Stdout, cmd.Stderr = logFile, logFile
	// CONSUL_* and GOMAXPROCS of the test's environment are not the agent's.
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + a.Dir, "GOMAXPROCS=2"}
	cmd.SysProcAttr = dieWithParent()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", a.binary, err)
	}
	exited := make(chan struct{})
	a.mu.Lock()
	a.process, a.exited = cmd.Process, exited
	a.mu.Unlock()
	go func() {
		defer close(exited)
		// How it ended is in the log; that it ended is all that is needed here.
		_ = cmd.Wait()
	}()

	if !a.started {
		a.Client = newClient(a.tb, a.Address, a.Token)
	}
	if err := a.waitReady(a.Client, exited); err != nil {
		return err
	}
	a.started = true
	return nil
}

func (a *Agent) waitReady(client *api.Client, exited <-chan struct{}) error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	reason := errors.New("not asked yet")
	for {
		select {
		case <-exited:
			return errors.New("the agent ended while it started; its log is below")
		case <-ctx.Done():
			return fmt.Errorf("not ready after %s: %w", startTimeout, reason)
		case <-tick.C:
		}
		if reason = ready(ctx, client); reason == nil {
			return nil
		}
	}
}

// ready reports why the agent cannot be used yet: it needs a leader that answers
// a consistent read, itself in the catalog, and Connect's root certificate.
func ready(ctx context.Context, client *api.Client) error {
	opts := (&api.QueryOptions{RequireConsistent: true}).WithContext(ctx)
	nodes, _, err := client.Catalog().Nodes(opts)
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	if len(nodes) == 0 {
		return errors.New("the agent is not in the catalog")
	}
	roots, _, err := client.Agent().ConnectCARoots((&api.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return fmt.Errorf("read Connect's roots: %w", err)
	}
	if len(roots.Roots) == 0 {
		return errors.New("connect has no root certificate")
	}
	return nil
}

func (a *Agent) writeConfig() (string, error) {
	gossip := map[string]any{
		"probe_interval": "200ms", "probe_timeout": "100ms",
		"gossip_interval": "50ms", "suspicion_mult": 2,
	}
	config := map[string]any{
		"node_name": "consultest", "datacenter": "dc1", "server": true, "bootstrap": true,
		"data_dir":  filepath.Join(a.Dir, "data"),
		"bind_addr": "127.0.0.1", "client_addr": "127.0.0.1", "advertise_addr": "127.0.0.1",
		"ports": map[string]int{
			"http": a.ports.http, "grpc": a.ports.grpc, "server": a.ports.server, "serf_lan": a.ports.serf,
			"serf_wan": -1, "dns": -1, "https": -1, "grpc_tls": -1,
		},
		"log_level": "info", "disable_update_check": true, "leave_on_terminate": true,
		"connect":     map[string]any{"enabled": true},
		"performance": map[string]any{"raft_multiplier": 1, "leave_drain_time": "0s"},
		"gossip_lan":  gossip,
		// Every watch of a test is a connection from one address.
		"limits": map[string]any{"http_max_conns_per_client": 5000},
	}
	if a.acl {
		config["acl"] = map[string]any{
			"enabled": true, "default_policy": "deny", "enable_token_persistence": true,
			"tokens": map[string]string{"initial_management": ManagementToken, "agent": ManagementToken},
		}
	}
	text, err := json.MarshalIndent(config, "", "  ")
	if err != nil {
		return "", fmt.Errorf("encode the agent's configuration: %w", err)
	}
	path := filepath.Join(a.Dir, "agent.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return "", fmt.Errorf("write the agent's configuration: %w", err)
	}
	return path, nil
}

func (a *Agent) running() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.process == nil {
		return false
	}
	select {
	case <-a.exited:
		return false
	default:
		return true
	}
}

// signal ends the process and reports whether it is gone.
func (a *Agent) signal(sig syscall.Signal) bool {
	a.mu.Lock()
	process, exited := a.process, a.exited
	a.mu.Unlock()
	if process == nil {
		return true
	}
	// An error means that it has ended already.
	_ = process.Signal(sig)
	select {
	case <-exited:
		return true
	case <-time.After(stopTimeout):
		return false
	}
}

func (a *Agent) end(sig syscall.Signal) {
	a.tb.Helper()
	if !a.signal(sig) && !a.signal(syscall.SIGKILL) {
		a.tb.Fatalf("consultest: consul (pid %d) did not end within %s of SIGKILL", a.process.Pid, stopTimeout)
	}
}

func (a *Agent) cleanup() {
	a.end(syscall.SIGKILL)
	if a.tb.Failed() {
		a.tb.Logf("consultest: the end of the agent's log:\n%s", a.log())
	}
}

func (a *Agent) logPath() string { return filepath.Join(a.Dir, "consul.log") }

func (a *Agent) log() string {
	text, err := os.ReadFile(a.logPath())
	if err != nil {
		return fmt.Sprintf("(%v)", err)
	}
	if len(text) > logTail {
		text = text[len(text)-logTail:]
	}
	return string(text)
}
