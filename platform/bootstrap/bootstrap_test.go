package bootstrap_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/bootstrap"
	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/keys"
)

func TestConsul(t *testing.T) {
	agent := consultest.Start(t, consultest.WithACL())
	server, client, node := keys.UUID(), keys.UUID(), keys.UUID()
	tokens := []bootstrap.Token{
		{Secret: server, Description: "Nomad's servers", Policies: []string{bootstrap.NomadServerPolicy}},
		{Secret: client, Description: "Nomad's clients", Policies: []string{bootstrap.NomadClientPolicy}},
		{Secret: node, Description: "The Consul agent of client-1", Node: "client-1"},
	}
	require.NoError(t, bootstrap.Consul(t.Context(), agent.Client, tokens))
	as := func(token string) *consulapi.Client {
		c, err := consulapi.NewClient(&consulapi.Config{Address: agent.Address, Token: token})
		require.NoError(t, err)
		return c
	}
	register := func(token, node, service string) error {
		_, err := as(token).Catalog().Register(&consulapi.CatalogRegistration{
			Node: node, Address: "10.0.0.1", SkipNodeUpdate: service != "", Service: serviceOf(service),
		}, nil)
		return err
	}
	require.NoError(t, register(node, "client-1", ""), "an agent registers its machine")
	require.Error(t, register(node, "client-2", ""), "and no other")
	require.Error(t, register(node, "client-1", "account"), "and no service")
	require.NoError(t, register(server, "client-1", "nomad"))
	require.Error(t, register(server, "client-1", "account"))
	require.NoError(t, register(client, "client-1", "account"))
	require.Error(t, register(client, "client-2", ""))
	for name, token := range map[string]string{"server": server, "client": client, "node": node} {
		_, err := as(token).KV().Put(&consulapi.KVPair{Key: "x"}, nil)
		require.ErrorContains(t, err, "403", name)
		_, _, err = as(token).ACL().TokenList(nil)
		require.ErrorContains(t, err, "403", name)
	}

	t.Run("AgainWritesNothing", func(t *testing.T) {
		index := func() uint64 {
			list, meta, err := agent.Client.ACL().TokenList(nil)
			require.NoError(t, err)
			require.Len(t, list, 5, "these, the operator's and the anonymous one")
			_, policies, err := agent.Client.ACL().PolicyList(nil)
			require.NoError(t, err)
			return meta.LastIndex + policies.LastIndex
		}
		before := index()
		require.NoError(t, bootstrap.Consul(t.Context(), agent.Client, tokens))
		require.Equal(t, before, index())
	})
	t.Run("MendsAPolicy", func(t *testing.T) {
		policy, _, err := agent.Client.ACL().PolicyReadByName(bootstrap.NomadServerPolicy, nil)
		require.NoError(t, err)
		good := policy.Rules
		policy.Rules = `acl = "write"`
		_, _, err = agent.Client.ACL().PolicyUpdate(policy, nil)
		require.NoError(t, err)
		require.NoError(t, bootstrap.Consul(t.Context(), agent.Client, tokens))
		policy, _, err = agent.Client.ACL().PolicyReadByName(bootstrap.NomadServerPolicy, nil)
		require.NoError(t, err)
		require.Equal(t, good, policy.Rules)
	})
	t.Run("WrongToken", func(t *testing.T) {
		require.ErrorContains(t, bootstrap.Consul(t.Context(), as(keys.UUID()), tokens), "403")
	})
	t.Run("Trust", func(t *testing.T) {
		first, second := jwks(t), jwks(t)
		require.NoError(t, bootstrap.Trust(t.Context(), agent.Client, first, ""))
		method, _, err := agent.Client.ACL().AuthMethodRead("nomad-workloads", nil)
		require.NoError(t, err)
		require.NoError(t, bootstrap.Trust(t.Context(), agent.Client, first, ""))
		same, _, err := agent.Client.ACL().AuthMethodRead("nomad-workloads", nil)
		require.NoError(t, err)
		require.Equal(t, method.ModifyIndex, same.ModifyIndex, "the same was written again")
		require.NoError(t, bootstrap.Trust(t.Context(), agent.Client, second, ""))
		moved, _, err := agent.Client.ACL().AuthMethodRead("nomad-workloads", nil)
		require.NoError(t, err)
		require.Equal(t, second, moved.Config["JWKSURL"])
		rules, _, err := agent.Client.ACL().BindingRuleList("nomad-workloads", nil)
		require.NoError(t, err)
		require.Len(t, rules, 2)
		require.ErrorContains(t, bootstrap.Trust(t.Context(), agent.Client, "http://127.0.0.1:1/jwks.json", ""), "connection refused", "Consul asks for the keys first")
	})
}

// jwks serves a key as Nomad serves its own: Consul asks for it when it is told
// of it.
func jwks(t *testing.T) (url string) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":"1","e":"AQAB","n":%q}]}`, base64.RawURLEncoding.EncodeToString(key.N.Bytes()))
	}))
	t.Cleanup(server.Close)
	return server.URL + "/.well-known/jwks.json"
}

func serviceOf(name string) *consulapi.AgentService {
	if name == "" {
		return nil
	}
	return &consulapi.AgentService{ID: name, Service: name}
}

// Waiting is bounded, and says what for.
func TestEnsureOfAClusterThatIsNotThere(t *testing.T) {
	k, err := keys.Ensure(filepath.Join(t.TempDir(), "keys"), keys.Nodes(1, 1), time.Now())
	require.NoError(t, err)
	consul, err := consulapi.NewClient(&consulapi.Config{Address: "127.0.0.1:1", HttpClient: &http.Client{}})
	require.NoError(t, err)
	nomad, err := nomadapi.NewClient(&nomadapi.Config{Address: "http://127.0.0.1:1"})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var said []string
	err = bootstrap.Ensure(ctx, bootstrap.Cluster{Consul: consul, Nomad: nomad, Keys: k, Progress: func(line string) { said = append(said, line) }})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "wait for Consul's leader")
	require.ErrorContains(t, err, "connection refused")
	require.Len(t, said, 1)
	require.Contains(t, said[0], "waiting for Consul's leader, 2 s: ")
}
