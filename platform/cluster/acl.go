package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// startBound is how long an agent may take to answer. It takes 2 s on an idle
// machine; the rest is for one that is busy.
const startBound = 60 * time.Second

// What the agents' tokens may do in Consul.
const (
	// Nomad registers itself, looks at the node and takes services that it does
	// not know any more out. Jobs' services and tasks have tokens of their own.
	nomadRules = `
agent_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy = "write"
}
`
	// Every task of a job may see the catalogue and read the key-value store.
	taskRules = `
key_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
service_prefix "" {
  policy = "read"
}
`
)

// The names that Nomad expects by default.
const (
	workloadMethod = "nomad-workloads"
	taskRole       = "nomad-default-tasks"
	taskPolicy     = "nomad-tasks"
	nomadPolicy    = "nomad-agent"
)

// waitForConsul waits until Consul has elected itself and knows the operator.
func (c *Cluster) waitForConsul(ctx context.Context) error {
	return c.waitFor(ctx, "Consul answers", startBound, consulName, c.consulAnswers)
}

func (c *Cluster) consulAnswers(ctx context.Context) error {
	if _, _, err := c.Consul().ACL().TokenReadSelf(query(ctx)); err != nil {
		return fmt.Errorf("ask Consul: %w", err)
	}
	return nil
}

func query(ctx context.Context) *consulapi.QueryOptions {
	return (&consulapi.QueryOptions{}).WithContext(ctx)
}

func writing(ctx context.Context) *consulapi.WriteOptions {
	return (&consulapi.WriteOptions{}).WithContext(ctx)
}

// consulACL makes the tokens of the two agents.
func (c *Cluster) consulACL(ctx context.Context) error {
	acl := c.Consul().ACL()
	if err := c.ensurePolicy(ctx, nomadPolicy, "The Nomad agents", nomadRules); err != nil {
		return err
	}
	if err := c.ensurePolicy(ctx, taskPolicy, "Tasks of Nomad jobs", taskRules); err != nil {
		return err
	}
	for _, token := range []*consulapi.ACLToken{
		{
			SecretID: c.secrets.ConsulAgent, Description: "The Consul agent",
			NodeIdentities: []*consulapi.ACLNodeIdentity{{NodeName: c.cfg.Name, Datacenter: "dc1"}},
		},
		{
			SecretID: c.secrets.ConsulNomad, Description: "The Nomad agents",
			Policies: []*consulapi.ACLLink{{Name: nomadPolicy}},
		},
	} {
		made, err := c.hasToken(ctx, token.SecretID)
		if err != nil {
			return err
		}
		if made {
			continue
		}
		if _, _, err := acl.TokenCreate(token, writing(ctx)); err != nil {
			return fmt.Errorf("make the Consul token of %q: %w", token.Description, err)
		}
	}
	return nil
}

func (c *Cluster) hasToken(ctx context.Context, secret string) (bool, error) {
	_, _, err := c.consulClient(secret).ACL().TokenReadSelf(query(ctx))
	var status consulapi.StatusError
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &status) && status.Code == http.StatusForbidden:
		return false, nil
	}
	return false, fmt.Errorf("look for a token in Consul: %w", err)
}

func (c *Cluster) ensurePolicy(ctx context.Context, name, description, rules string) error {
	acl := c.Consul().ACL()
	policy, _, err := acl.PolicyReadByName(name, query(ctx))
	switch {
	case err != nil && !notFound(err):
		return fmt.Errorf("read the Consul policy %s: %w", name, err)
	case policy == nil:
		_, _, err = acl.PolicyCreate(&consulapi.ACLPolicy{Name: name, Description: description, Rules: rules}, writing(ctx))
	case policy.Rules == rules:
		return nil
	default:
		policy.Rules = rules
		_, _, err = acl.PolicyUpdate(policy, writing(ctx))
	}
	if err != nil {
		return fmt.Errorf("write the Consul policy %s: %w", name, err)
	}
	return nil
}

func notFound(err error) bool {
	var status consulapi.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
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

// nomadACL makes the operator's token, which can be done once, with a secret
// that is known before.
func (c *Cluster) nomadACL(ctx context.Context) error {
	tokens := c.Nomad().ACLTokens()
	return c.waitFor(ctx, "Nomad knows its operator", startBound, nomadServerName, func(ctx context.Context) error {
		_, _, err := tokens.Self((&nomadapi.QueryOptions{}).WithContext(ctx))
		if err == nil {
			return nil
		}
		var status nomadapi.UnexpectedResponseError
		if !errors.As(err, &status) || status.StatusCode() != http.StatusForbidden {
			return err
		}
		_, _, err = tokens.BootstrapOpts(c.secrets.NomadManagement, (&nomadapi.WriteOptions{}).WithContext(ctx))
		return err
	})
}

func (c *Cluster) nomadAnswers(ctx context.Context) error {
	if _, _, err := c.Nomad().ACLTokens().Self((&nomadapi.QueryOptions{}).WithContext(ctx)); err != nil {
		return fmt.Errorf("ask Nomad: %w", err)
	}
	return nil
}

// workloadIdentity is what `nomad setup consul` does: Consul trusts the
// identities that Nomad signs, a service's becomes that service's identity, any
// other task's the tasks' role.
func (c *Cluster) workloadIdentity(ctx context.Context) error {
	acl := c.Consul().ACL()
	method := &consulapi.ACLAuthMethod{
		Name: workloadMethod, Type: "jwt", Description: "Jobs of Nomad, by their workload identity",
		Config: map[string]any{
			"JWKSURL":          c.keysURL(),
			"JWTSupportedAlgs": []any{"RS256"},
			"BoundAudiences":   []any{"consul.io"},
			"ClaimMappings": map[string]any{
				"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id",
				"nomad_task": "nomad_task", "nomad_service": "nomad_service",
			},
		},
	}
	have, _, err := acl.AuthMethodRead(workloadMethod, query(ctx))
	switch {
	case err != nil && !notFound(err):
		return fmt.Errorf("read how Consul trusts Nomad: %w", err)
	case have == nil:
		_, _, err = acl.AuthMethodCreate(method, writing(ctx))
	case !reflect.DeepEqual(have.Config, method.Config):
		_, _, err = acl.AuthMethodUpdate(method, writing(ctx))
	}
	if err != nil {
		return fmt.Errorf("make Consul trust Nomad's identities: %w", err)
	}

	role, _, err := acl.RoleReadByName(taskRole, query(ctx))
	if err != nil && !notFound(err) {
		return fmt.Errorf("read the tasks' role in Consul: %w", err)
	}
	if role == nil {
		if _, _, err := acl.RoleCreate(&consulapi.ACLRole{
			Name: taskRole, Description: "Tasks of Nomad jobs", Policies: []*consulapi.ACLLink{{Name: taskPolicy}},
		}, writing(ctx)); err != nil {
			return fmt.Errorf("make the tasks' role in Consul: %w", err)
		}
	}

	rules, _, err := acl.BindingRuleList(workloadMethod, query(ctx))
	if err != nil {
		return fmt.Errorf("read what Nomad's identities may do in Consul: %w", err)
	}
	bound := map[string]bool{}
	for _, r := range rules {
		bound[r.BindName] = true
	}
	for _, rule := range []*consulapi.ACLBindingRule{
		{BindType: consulapi.BindingRuleBindTypeService, BindName: "${value.nomad_service}", Selector: `"nomad_service" in value`},
		{BindType: consulapi.BindingRuleBindTypeRole, BindName: "nomad-${value.nomad_namespace}-tasks", Selector: `"nomad_service" not in value`},
	} {
		if bound[rule.BindName] {
			continue
		}
		rule.AuthMethod = workloadMethod
		if _, _, err := acl.BindingRuleCreate(rule, writing(ctx)); err != nil {
			return fmt.Errorf("say what Nomad's identities may do in Consul: %w", err)
		}
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
