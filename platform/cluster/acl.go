package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"

	"github.com/marquee-ads/marquee/platform/bootstrap"
)

// startBound is how long an agent may take to answer. It takes 2 s on an idle
// machine; the rest is for one that is busy.
const startBound = 60 * time.Second

// waitForConsul waits until Consul has elected itself and knows the operator.
func (c *Cluster) waitForConsul(ctx context.Context) error {
	return c.waitFor(ctx, "Consul answers", startBound, consulName, c.consulAnswers)
}

func (c *Cluster) consulAnswers(ctx context.Context) error {
	if _, _, err := c.Consul().ACL().TokenReadSelf((&consulapi.QueryOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("ask Consul: %w", err)
	}
	return nil
}

// consulACL makes the tokens of the agents. Nomad's server and client, on one
// machine, share theirs.
func (c *Cluster) consulACL(ctx context.Context) error {
	return bootstrap.Consul(ctx, c.Consul(), []bootstrap.Token{
		{Secret: c.secrets.ConsulAgent, Description: "The Consul agent", Node: c.cfg.Name},
		{Secret: c.secrets.ConsulNomad, Description: "The Nomad agents", Policies: []string{bootstrap.NomadClientPolicy}},
	})
}

// waitForNomadKeys waits until Nomad serves the keys with which it signs
// identities: from then on clients can register and Consul can verify.
func (c *Cluster) waitForNomadKeys(ctx context.Context) error {
	return c.waitFor(ctx, "Nomad serves its keys", startBound, nomadServerName, func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.keysURL(), nil)
		if err != nil {
			return err
		}
		resp, err := c.http.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var keys struct{ Keys []json.RawMessage }
		if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&keys); err != nil {
			return fmt.Errorf("%s: %w", resp.Status, err)
		}
		if len(keys.Keys) == 0 {
			return errors.New("there is no key yet")
		}
		return nil
	})
}

func (c *Cluster) keysURL() string {
	return "http://" + c.addr(portNomadHTTP) + "/.well-known/jwks.json"
}

// nomadACL makes the operator's token.
func (c *Cluster) nomadACL(ctx context.Context) error {
	return c.waitFor(ctx, "Nomad knows its operator", startBound, nomadServerName, func(ctx context.Context) error {
		return bootstrap.Nomad(ctx, c.Nomad(), c.secrets.NomadManagement)
	})
}

func (c *Cluster) nomadAnswers(ctx context.Context) error {
	if _, _, err := c.Nomad().ACLTokens().Self((&nomadapi.QueryOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("ask Nomad: %w", err)
	}
	return nil
}

// waitForNode waits until the one node takes jobs that have services.
func (c *Cluster) waitForNode(ctx context.Context) error {
	return c.waitFor(ctx, "the node is ready", startBound, nomadClientName, c.nodeReady)
}

func (c *Cluster) nodeReady(ctx context.Context) error {
	// What the server says of its node may be from before it was down: the
	// client itself knows whether the server has taken its heartbeat.
	options := (&nomadapi.QueryOptions{}).WithContext(ctx)
	var self nomadapi.AgentSelf
	if _, err := c.nomadAt(portNomadClient).Raw().Query("/v1/agent/self", &self, options); err != nil {
		return fmt.Errorf("ask Nomad's client: %w", err)
	}
	if ttl := self.Stats["client"]["heartbeat_ttl"]; ttl == "" || ttl == "0s" {
		return errors.New("the Nomad client has not registered yet")
	}
	nodes, _, err := c.Nomad().Nodes().List(options)
	if err != nil {
		return fmt.Errorf("list the nodes of Nomad: %w", err)
	}
	for _, n := range nodes {
		if n.Name != c.cfg.Name || n.Status != nomadapi.NodeStatusReady {
			continue
		}
		if n.SchedulingEligibility != nomadapi.NodeSchedulingEligible {
			return errors.New("the node is marked as ineligible: nomad node eligibility -enable <node>")
		}
		node, _, err := c.Nomad().Nodes().Info(n.ID, options)
		if err != nil {
			return fmt.Errorf("read the node from Nomad: %w", err)
		}
		// The scheduler places a job with services only on a node that has
		// seen Consul.
		if node.Attributes["consul.version"] == "" || node.Attributes["consul.connect"] == "false" {
			return errors.New("the Nomad client has not found Consul yet")
		}
		return nil
	}
	return errors.New("the node is not ready")
}
