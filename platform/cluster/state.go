package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/marquee-ads/marquee/platform/keys"
)

// state is what a cluster remembers between starts.
type state struct {
	PortBase int `json:"port_base"`
}

// secrets are made once per cluster and readable by its owner only.
type secrets struct {
	ConsulGossip     string `json:"consul_gossip"`
	ConsulManagement string `json:"consul_management"`
	ConsulAgent      string `json:"consul_agent"`
	ConsulNomad      string `json:"consul_nomad"`
	NomadGossip      string `json:"nomad_gossip"`
	NomadManagement  string `json:"nomad_management"`
}

func newSecrets() secrets {
	return secrets{
		ConsulGossip: keys.GossipKey(), ConsulManagement: keys.UUID(), ConsulAgent: keys.UUID(), ConsulNomad: keys.UUID(),
		NomadGossip: keys.GossipKey(), NomadManagement: keys.UUID(),
	}
}

func (c *Cluster) path(elements ...string) string {
	return filepath.Join(append([]string{c.cfg.Dir}, elements...)...)
}

func (c *Cluster) logPath(agent string) string { return c.path("logs", agent+".log") }

func (c *Cluster) load() error {
	for name, into := range map[string]any{"state.json": &c.state, "secrets.json": &c.secrets} {
		text, err := os.ReadFile(c.path(name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read the cluster's folder: %w", err)
		}
		if err := json.Unmarshal(text, into); err != nil {
			return fmt.Errorf("read %s: %w", c.path(name), err)
		}
	}
	return nil
}

// save writes a file whole or not at all.
func save(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return saveText(path, append(text, '\n'))
}

func saveText(path string, text []byte) error {
	temp := path + ".new"
	if err := os.WriteFile(temp, text, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(temp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// prepare makes the folder, chooses the ports and makes the secrets, each once.
func (c *Cluster) prepare(ctx context.Context) error {
	// Tasks may run as another user, who has to pass through to their
	// allocation or volume but sees nothing else.
	for dir, mode := range map[string]os.FileMode{
		"": 0o711, "config": 0o700, "logs": 0o700, "consul": 0o700, "nomad-server": 0o700,
		"nomad-client": 0o711, "alloc": 0o711, "volumes": 0o711, "tmp": 0o777 | os.ModeSticky,
	} {
		if err := os.MkdirAll(c.path(dir), mode); err != nil {
			return fmt.Errorf("make the cluster's folder: %w", err)
		}
		if err := os.Chmod(c.path(dir), mode); err != nil {
			return fmt.Errorf("make the cluster's folder: %w", err)
		}
	}
	if c.secrets == (secrets{}) {
		made := newSecrets()
		if err := save(c.path("secrets.json"), made); err != nil {
			return err
		}
		c.secrets = made
	}
	if c.state.PortBase == 0 {
		base, err := c.choosePorts(ctx)
		if err != nil {
			return err
		}
		if err := save(c.path("state.json"), state{PortBase: base}); err != nil {
			return err
		}
		c.state.PortBase = base
	}
	return nil
}

// lock keeps other processes from bringing the same cluster up or down. The
// kernel gives it back when its holder dies. The file lies beside the folder,
// because Wipe removes the folder.
func (c *Cluster) lock(ctx context.Context) (unlock func(), err error) {
	path := filepath.Join(filepath.Dir(c.cfg.Dir), "."+filepath.Base(c.cfg.Dir)+".lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for first := true; ; first = false {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock the cluster: %w", err)
		}
		if first {
			c.say(Step{Name: "lock", Text: "waiting for another process that brings this cluster up or down"})
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for another process that brings this cluster up or down: %w", ctx.Err())
		case <-tick.C:
		}
	}
}
