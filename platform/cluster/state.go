package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/marquee-ads/marquee/platform/files"
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

func save(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return files.Replace(path, append(text, '\n'), 0o600)
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

// lock keeps other processes from bringing the same cluster up or down. The file
// lies beside the folder, because Wipe removes the folder.
func (c *Cluster) lock(ctx context.Context) (*os.File, error) {
	path := filepath.Join(filepath.Dir(c.cfg.Dir), "."+filepath.Base(c.cfg.Dir)+".lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("lock the cluster: %w", err)
	}
	const waiting = "waiting for another process that brings this cluster up or down"
	lock, err := files.Lock(ctx, path, func() { c.say(waiting) })
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("%s: %w", waiting, err)
	}
	return lock, err
}
