// Package bootstrap makes a new Consul and Nomad know their operator, their
// agents and each other: policies, tokens, and that Consul trusts the identities
// which Nomad signs for jobs.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
)

// What tokens may do in Consul.
const (
	// A Nomad server says of itself where it is.
	nomadServerRules = `
agent_prefix "" {
  policy = "read"
}
node_prefix "" {
  policy = "read"
}
service "nomad" {
  policy = "write"
}
`
	// A Nomad client does so too, and takes out the services that it does not know
	// any more, whose own tokens are gone. Registering a service needs the token
	// of the Consul agent on the same machine besides.
	nomadClientRules = `
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

// The names of the policies.
const (
	NomadServerPolicy = "nomad-server"
	NomadClientPolicy = "nomad-client"
)

// The names that Nomad expects by default.
const (
	workloadMethod = "nomad-workloads"
	taskRole       = "nomad-default-tasks"
	taskPolicy     = "nomad-tasks"
)

// Token is a Consul token with a secret that was chosen before. It speaks for
// the agent of a node, or has policies.
type Token struct {
	Secret      string
	Description string
	Node        string
	Policies    []string
}

// Consul makes the policies, and the tokens that are missing. What is as it
// should be is not written.
func Consul(ctx context.Context, client *consulapi.Client, tokens []Token) error {
	for _, p := range []struct{ name, description, rules string }{
		{NomadServerPolicy, "Nomad's servers", nomadServerRules},
		{NomadClientPolicy, "Nomad's clients", nomadClientRules},
		{taskPolicy, "Tasks of Nomad jobs", taskRules},
	} {
		if err := ensurePolicy(ctx, client, p.name, p.description, p.rules); err != nil {
			return err
		}
	}
	for _, t := range tokens {
		if err := ensureToken(ctx, client, t); err != nil {
			return err
		}
	}
	return nil
}

func ensureToken(ctx context.Context, client *consulapi.Client, t Token) error {
	_, _, err := client.ACL().TokenReadSelf(query(ctx, t.Secret))
	var status consulapi.StatusError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &status) || status.Code != http.StatusForbidden:
		return fmt.Errorf("look for the Consul token of %s: %w", t.Description, err)
	}
	token := &consulapi.ACLToken{SecretID: t.Secret, Description: t.Description}
	if t.Node != "" {
		token.NodeIdentities = []*consulapi.ACLNodeIdentity{{NodeName: t.Node, Datacenter: "dc1"}}
	}
	for _, name := range t.Policies {
		token.Policies = append(token.Policies, &consulapi.ACLLink{Name: name})
	}
	if _, _, err := client.ACL().TokenCreate(token, writing(ctx)); err != nil {
		return fmt.Errorf("make the Consul token of %s: %w", t.Description, err)
	}
	return nil
}

func ensurePolicy(ctx context.Context, client *consulapi.Client, name, description, rules string) error {
	acl := client.ACL()
	policy, _, err := acl.PolicyReadByName(name, query(ctx, ""))
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

// Nomad makes the operator's token, which can be done once, with a secret that
// is known before. The client must show that secret.
func Nomad(ctx context.Context, client *nomadapi.Client, secret string) error {
	tokens := client.ACLTokens()
	_, _, err := tokens.Self((&nomadapi.QueryOptions{}).WithContext(ctx))
	if err == nil {
		return nil
	}
	var status nomadapi.UnexpectedResponseError
	if !errors.As(err, &status) || status.StatusCode() != http.StatusForbidden {
		return fmt.Errorf("ask Nomad for its operator: %w", err)
	}
	if _, _, err := tokens.BootstrapOpts(secret, (&nomadapi.WriteOptions{}).WithContext(ctx)); err != nil {
		if strings.Contains(err.Error(), "already done") {
			return fmt.Errorf("these keys are not those of Nomad's operator: bring the keys back that the cluster was made with: %w", err)
		}
		return fmt.Errorf("make Nomad's operator: %w", err)
	}
	return nil
}

// Trust is what `nomad setup consul` does: Consul trusts the identities that
// Nomad signs, a service's becomes that service's identity, any other task's the
// tasks' role. Consul's servers fetch Nomad's keys from jwksURL, over TLS with
// the CA jwksCA in PEM when it is not empty.
func Trust(ctx context.Context, client *consulapi.Client, jwksURL, jwksCA string) error {
	if err := ensureAuthMethod(ctx, client, jwksURL, jwksCA); err != nil {
		return err
	}
	acl := client.ACL()
	role, _, err := acl.RoleReadByName(taskRole, query(ctx, ""))
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

	rules, _, err := acl.BindingRuleList(workloadMethod, query(ctx, ""))
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

func ensureAuthMethod(ctx context.Context, client *consulapi.Client, jwksURL, jwksCA string) error {
	acl := client.ACL()
	method := &consulapi.ACLAuthMethod{
		Name: workloadMethod, Type: "jwt", Description: "Jobs of Nomad, by their workload identity",
		Config: map[string]any{
			"JWKSURL":          jwksURL,
			"JWTSupportedAlgs": []any{"RS256"},
			"BoundAudiences":   []any{"consul.io"},
			"ClaimMappings": map[string]any{
				"nomad_namespace": "nomad_namespace", "nomad_job_id": "nomad_job_id",
				"nomad_task": "nomad_task", "nomad_service": "nomad_service",
			},
		},
	}
	if jwksCA != "" {
		method.Config["JWKSCACert"] = jwksCA
	}
	have, _, err := acl.AuthMethodRead(workloadMethod, query(ctx, ""))
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
	return nil
}

// agentTokens are those of an environment's agents.
func agentTokens(nodes map[string]string, nomadServer, nomadClient string) []Token {
	tokens := []Token{
		{Secret: nomadServer, Description: "Nomad's servers", Policies: []string{NomadServerPolicy}},
		{Secret: nomadClient, Description: "Nomad's clients", Policies: []string{NomadClientPolicy}},
	}
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		tokens = append(tokens, Token{Secret: nodes[name], Description: "The Consul agent of " + name, Node: name})
	}
	return tokens
}

func query(ctx context.Context, token string) *consulapi.QueryOptions {
	return (&consulapi.QueryOptions{Token: token}).WithContext(ctx)
}

func writing(ctx context.Context) *consulapi.WriteOptions {
	return (&consulapi.WriteOptions{}).WithContext(ctx)
}

func notFound(err error) bool {
	var status consulapi.StatusError
	return errors.As(err, &status) && status.Code == http.StatusNotFound
}
