package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/marquee-ads/marquee/platform/bootstrap"
	"github.com/marquee-ads/marquee/platform/environment"
	"github.com/marquee-ads/marquee/platform/keys"
)

// applyBound is how long the cluster may take to go by new keys: it takes
// seconds, and a leader may be elected meanwhile.
const applyBound = 2 * time.Minute

type keysCmd struct {
	Env string `default:"local" env:"MARQUEE_ENVIRONMENT" placeholder:"NAME" help:"The environment's name; its keys are in .marquee/environments/<name>/keys."`

	New      keysNewCmd      `cmd:"" help:"Make what is missing of the environment's keys; nothing that is there changes."`
	Show     keysShowCmd     `cmd:"" help:"Show the certificates and until when they are good, and what was rotated by halves."`
	Rotate   keysRotateCmd   `cmd:"" help:"Replace kinds of keys, and have the cluster know the new ones if it is there."`
	Apply    keysApplyCmd    `cmd:"" help:"Have the cluster know the keys: after a rotation while it was down, or for new machines."`
	Withdraw keysWithdrawCmd `cmd:"" help:"Make what was rotated good for nothing, after all machines got the new: tokens, or the CA."`
}

func (c *keysCmd) folder(e *env) (string, error) {
	if err := environment.ValidName(c.Env); err != nil {
		return "", err
	}
	return environment.KeysFolder(e.root, c.Env), nil
}

type keysNewCmd struct {
	Servers *int     `help:"Make keys for server-1 to server-N: 1, 3, 5 or 7. 3, and with --node none, when it is not given." placeholder:"N"`
	Clients *int     `help:"Make keys for client-1 to client-N. 2, and with --node none, when it is not given." placeholder:"N"`
	Node    []string `placeholder:"NAME=ROLE" help:"Make keys for a machine with this name, for example edge-1=client; ROLE is server or client. May be given several times."`
}

// nodes are the machines that keys are wanted for.
func (c *keysNewCmd) nodes() ([]keys.Node, error) {
	servers, clients := 3, 2
	if len(c.Node) > 0 {
		servers, clients = 0, 0
	}
	if c.Servers != nil {
		servers = *c.Servers
		if servers < 1 || servers > 7 || servers%2 == 0 {
			return nil, fmt.Errorf("--servers %d: want 1, 3, 5 or 7, so that a majority is left when one is lost", servers)
		}
	}
	if c.Clients != nil {
		clients = *c.Clients
		if clients < 0 || clients > 1000 {
			return nil, fmt.Errorf("--clients %d: want 0 to 1000", clients)
		}
	}
	nodes := keys.Nodes(servers, clients)
	for _, text := range c.Node {
		name, role, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("--node %s: want NAME=server or NAME=client", text)
		}
		node := keys.Node{Name: name, Role: keys.Role(role)}
		if !slices.Contains(nodes, node) {
			nodes = append(nodes, node)
		}
	}
	return nodes, nil
}

// Run makes keys.
func (c *keysNewCmd) Run(e *env, parent *keysCmd) error {
	dir, err := parent.folder(e)
	if err != nil {
		return err
	}
	nodes, err := c.nodes()
	if err != nil {
		return err
	}
	k, err := keys.Ensure(dir, nodes, time.Now())
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s has keys for %d machines\n", k.Dir, len(k.Secrets.Nodes))
	return err
}

type keysShowCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// Run shows what can be shown to everybody.
func (c *keysShowCmd) Run(e *env, parent *keysCmd) error {
	dir, err := parent.folder(e)
	if err != nil {
		return err
	}
	k, err := keys.Load(dir)
	if err != nil {
		return err
	}
	certificates, err := k.Certificates()
	if err != nil {
		return err
	}
	pending, err := pendingRotations(k)
	if err != nil {
		return err
	}
	if c.JSON {
		return e.printJSON(map[string]any{"folder": k.Dir, "certificates": certificates, "pending": pending})
	}
	table := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "CERTIFICATE\tGOOD UNTIL\tDAYS\tFOR")
	for _, one := range certificates {
		fmt.Fprintf(table, "%s\t%s\t%d\t%s\n", one.Name, one.NotAfter.Format(time.DateOnly),
			int(time.Until(one.NotAfter).Hours()/24), strings.Join(one.Names, " "))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, line := range pending {
		fmt.Fprintln(e.stdout, line)
	}
	return k.CheckExpiry(time.Now())
}

// pendingRotations says what is still to be done.
func pendingRotations(k *keys.Keys) ([]string, error) {
	var lines []string
	ca, err := k.PendingCA()
	if err != nil && !errors.Is(err, keys.ErrMissing) { // its key may be kept elsewhere
		return nil, err
	}
	if ca != "" {
		lines = append(lines, ca)
	}
	if before := k.Secrets.Before; before != nil {
		if before.ConsulGossip != "" {
			lines = append(lines, "the gossip keys were rotated, and the cluster does not go by them yet: marquee keys apply")
		}
		if before.ConsulManagement != "" {
			lines = append(lines, "tokens were rotated, and the old ones are still good: give the machines their new files, then marquee keys withdraw")
		}
	}
	return lines, nil
}

type keysRotateCmd struct {
	Kinds []keys.Kind `arg:"" enum:"ca,certificates,gossip,tokens,ssh" help:"ca, certificates, gossip, tokens, ssh."`
}

// Run rotates, and applies it to a cluster that is there.
func (c *keysRotateCmd) Run(e *env, parent *keysCmd) error {
	dir, err := parent.folder(e)
	if err != nil {
		return err
	}
	if _, err := keys.Rotate(dir, time.Now(), c.Kinds...); err != nil {
		return err
	}
	err = parent.apply(e)
	if errors.Is(err, environment.ErrUnknown) {
		_, err = fmt.Fprintf(e.stdout, "%s: rotated; there is no cluster yet\n", dir)
		return err
	}
	if err != nil {
		return fmt.Errorf("the keys in %s are rotated, the cluster does not know them yet (marquee keys apply): %w", dir, err)
	}
	for _, kind := range c.Kinds {
		fmt.Fprintln(e.stdout, next(kind))
	}
	return nil
}

// next is what is left to do after a rotation.
func next(kind keys.Kind) string {
	switch kind {
	case keys.CA:
		return "ca: the next one is trusted beside the old; give the machines their new files one by one, then: marquee keys rotate certificates"
	case keys.Gossip:
		return "gossip: done, every agent uses the new keys"
	case keys.Tokens:
		return "tokens: the new ones are good; give the machines their new files one by one, then: marquee keys withdraw"
	case keys.SSH:
		return "ssh: machines take the new key when they get their new files"
	default:
		return "certificates: give the machines their new files one by one"
	}
}

type keysApplyCmd struct{}

// Run makes the cluster know the keys.
func (c *keysApplyCmd) Run(e *env, parent *keysCmd) error {
	return parent.apply(e)
}

func (c *keysCmd) apply(e *env) error {
	return c.withCluster(e, bootstrap.Ensure)
}

func (c *keysCmd) withCluster(e *env, do func(context.Context, bootstrap.Cluster) error) error {
	env, err := environment.Load(e.root, c.Env)
	if err != nil {
		return err
	}
	consul, err := env.Consul()
	if err != nil {
		return err
	}
	nomad, err := env.Nomad()
	if err != nil {
		return err
	}
	steps := newSteps(e.stderr)
	ctx, cancel := context.WithTimeout(e.ctx, applyBound)
	defer cancel()
	return do(ctx, bootstrap.Cluster{
		Consul: consul, Nomad: nomad, Keys: env.Keys(), Progress: func(line string) { steps.say("%s", line) },
	})
}

type keysWithdrawCmd struct {
	Kind keys.Kind `arg:"" optional:"" enum:"tokens,ca" default:"tokens" help:"tokens or ca. Default: tokens."`
}

// Run makes old tokens good for nothing, or has the old CA trusted no more.
func (c *keysWithdrawCmd) Run(e *env, parent *keysCmd) error {
	if c.Kind == keys.CA {
		dir, err := parent.folder(e)
		if err != nil {
			return err
		}
		if _, err := keys.WithdrawCA(dir); err != nil {
			return err
		}
		_, err = fmt.Fprintln(e.stdout, "ca: the old one is trusted no more by machines with their new files; give them out one by one")
		return err
	}
	if err := parent.withCluster(e, bootstrap.Withdraw); err != nil {
		return err
	}
	_, err := fmt.Fprintln(e.stdout, "no old token is good any more")
	return err
}
