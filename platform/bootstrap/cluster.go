package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/marquee-ads/marquee/platform/keys"
)

// jwksURL is where Consul's servers, each on its own machine, get the keys with
// which Nomad signs identities: every server machine runs both.
const jwksURL = "https://127.0.0.1:4646/.well-known/jwks.json"

// How often a cluster is asked, how long one answer may take, and how often is
// said what is waited for.
const (
	askEvery  = 250 * time.Millisecond
	askBound  = 10 * time.Second
	sayEvery  = 5 * time.Second
	saySooner = 2 * time.Second
)

// Cluster is a cluster of machines as its operator sees it.
type Cluster struct {
	// Consul and Nomad show the operator's tokens, those in Keys.
	Consul *consulapi.Client
	Nomad  *nomadapi.Client
	Keys   *keys.Keys
	// Progress is told what is waited for. Nil is silent.
	Progress func(line string)
}

// Ensure makes a cluster know its operator, agents and jobs. It waits until there
// are leaders; ctx bounds that. What is as it should be is not written: it is for
// a cluster that has just started, and again when keys were added or rotated.
//
// Rotated gossip keys hold everywhere when it returns. Of rotated tokens the old
// ones are good beside the new ones until Withdraw.
func Ensure(ctx context.Context, c Cluster) error {
	s := c.Keys.Secrets
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"Consul's leader", c.ensureOperator},
		{"Consul's policies and tokens", func(ctx context.Context) error {
			return Consul(ctx, c.Consul, agentTokens(s.Nodes, s.ConsulNomadServer, s.ConsulNomadClient))
		}},
		{"Nomad's leader", func(ctx context.Context) error { return Nomad(ctx, c.Nomad, s.NomadManagement) }},
		{"Consul's trust in Nomad", func(ctx context.Context) error {
			return Trust(ctx, c.Consul, jwksURL, string(c.Keys.CA))
		}},
		{"the new gossip keys", c.rotateGossip},
		{"Nomad's new operator", c.rotateNomadOperator},
	} {
		if err := c.wait(ctx, step.what, step.do); err != nil {
			return err
		}
	}
	return nil
}

// WaitHealthy waits until Healthy is satisfied; ctx bounds it. The error says
// what was still missing.
func WaitHealthy(ctx context.Context, c Cluster, servers, clients []string) error {
	return c.wait(ctx, "the machines", func(ctx context.Context) error { return Healthy(ctx, c, servers, clients) })
}

// Healthy looks once whether all machines, by the names of their nodes, are there:
// alive and in Consul's catalogue, servers voting in both, clients ready for jobs
// and answering.
// The error names those that are not, and what they lack.
func Healthy(ctx context.Context, c Cluster, servers, clients []string) error {
	var missing []string
	for _, look := range []func(context.Context, Cluster, []string, []string) ([]string, error){consulNodes, consulVoters, nomadVoters, nomadClients} {
		more, err := look(ctx, c, servers, clients)
		if err != nil {
			return err
		}
		missing = append(missing, more...)
	}
	if len(missing) > 0 {
		return errors.New(strings.Join(missing, "; "))
	}
	return nil
}

// consulNodes names machines that are not alive in Consul.
func consulNodes(ctx context.Context, c Cluster, servers, clients []string) ([]string, error) {
	checks, _, err := c.Consul.Health().State(consulapi.HealthAny, query(ctx, ""))
	if err != nil {
		return nil, fmt.Errorf("ask Consul for its machines: %w", err)
	}
	alive := map[string]bool{}
	for _, check := range checks {
		if check.CheckID == "serfHealth" {
			alive[check.Node] = check.Status == consulapi.HealthPassing
		}
	}
	// A machine is in the catalogue as soon as it gossips; with a version, when its
	// agent's own token was accepted.
	nodes, _, err := c.Consul.Catalog().Nodes(query(ctx, ""))
	if err != nil {
		return nil, fmt.Errorf("ask Consul for its machines: %w", err)
	}
	synced := map[string]bool{}
	for _, n := range nodes {
		synced[n.Node] = n.Meta["consul-version"] != ""
	}
	var missing []string
	if gone := lacking(slices.Concat(servers, clients), alive); gone != "" {
		missing = append(missing, "Consul does not see "+gone)
	} else if late := lacking(slices.Concat(servers, clients), synced); late != "" {
		missing = append(missing, "not registered in Consul yet: "+late)
	}
	return missing, nil
}

func consulVoters(ctx context.Context, c Cluster, servers, _ []string) ([]string, error) {
	raft, err := c.Consul.Operator().RaftGetConfiguration(query(ctx, ""))
	if err != nil {
		return nil, fmt.Errorf("ask Consul for its servers: %w", err)
	}
	voters, leader := map[string]bool{}, false
	for _, s := range raft.Servers {
		voters[s.Node] = s.Voter
		leader = leader || s.Leader
	}
	var missing []string
	if !leader {
		missing = append(missing, "Consul has no leader")
	}
	if gone := lacking(servers, voters); gone != "" {
		missing = append(missing, "no vote in Consul: "+gone)
	}
	return missing, nil
}

func nomadVoters(ctx context.Context, c Cluster, servers, _ []string) ([]string, error) {
	raft, err := c.Nomad.Operator().RaftGetConfiguration((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("ask Nomad for its servers: %w", err)
	}
	voters, leader := map[string]bool{}, false
	for _, s := range raft.Servers {
		voters[strings.TrimSuffix(s.Node, ".global")] = s.Voter
		leader = leader || s.Leader
	}
	var missing []string
	if !leader {
		missing = append(missing, "Nomad has no leader")
	}
	if gone := lacking(servers, voters); gone != "" {
		missing = append(missing, "no vote in Nomad: "+gone)
	}
	return missing, nil
}

func nomadClients(ctx context.Context, c Cluster, _, clients []string) ([]string, error) {
	options := (&nomadapi.QueryOptions{}).WithContext(ctx)
	nodes, _, err := c.Nomad.Nodes().List(options)
	if err != nil {
		return nil, fmt.Errorf("ask Nomad for its machines: %w", err)
	}
	ready := map[string]bool{}
	for _, n := range nodes {
		// A machine that was made anew has an older namesake for a while.
		if n.Status != nomadapi.NodeStatusReady || !slices.Contains(clients, n.Name) {
			continue
		}
		node, _, err := c.Nomad.Nodes().Info(n.ID, options)
		if err != nil {
			return nil, fmt.Errorf("ask Nomad for %s: %w", n.Name, err)
		}
		// The scheduler places a job with services only on a node that has seen
		// Consul.
		ready[n.Name] = node.Attributes["consul.version"] != "" && answers(ctx, c.Nomad, n.ID)
	}
	if gone := lacking(clients, ready); gone != "" {
		return []string{"not ready in Nomad: " + gone}, nil
	}
	return nil, nil
}

// answers says whether the agent of a client is there now: of one that went
// without a word Nomad believes for many seconds that it is ready.
func answers(ctx context.Context, nomad *nomadapi.Client, id string) bool {
	ctx, cancel := context.WithTimeout(ctx, askBound/4)
	defer cancel()
	_, err := nomad.Nodes().Stats(id, (&nomadapi.QueryOptions{}).WithContext(ctx))
	return err == nil
}

// lacking are the names that have it not.
func lacking(names []string, have map[string]bool) string {
	var gone []string
	for _, name := range names {
		if !have[name] {
			gone = append(gone, name)
		}
	}
	return strings.Join(gone, ", ")
}

// wait asks until it is answered without an error, and says what it waits for.
func (c Cluster) wait(ctx context.Context, what string, ask func(context.Context) error) error {
	start := time.Now()
	said := start.Add(saySooner - sayEvery)
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	var last error
	for {
		asking, cancel := context.WithTimeout(ctx, askBound)
		err := ask(asking)
		cancel()
		if err == nil {
			return nil
		}
		// An attempt that the end of ctx cut off says nothing about the cluster.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		if c.Progress != nil && time.Since(said) >= sayEvery {
			said = time.Now()
			c.Progress(fmt.Sprintf("waiting for %s, %d s: %v", what, int(time.Since(start).Seconds()), last))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %w", what, context.Cause(ctx), last)
		case <-tick.C:
		}
	}
}
