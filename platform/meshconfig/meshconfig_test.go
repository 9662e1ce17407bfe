package meshconfig_test

import (
	"net/http"
	"testing"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/consultest"
	"github.com/marquee-ads/marquee/platform/edges"
	"github.com/marquee-ads/marquee/platform/meshconfig"
)

// The edges of a whole mesh, then fewer of them, on a real Consul with ACLs.
func TestApply(t *testing.T) {
	client := consultest.Start(t, consultest.WithACL()).Client
	parse := func(text string) edges.Edges {
		e, err := edges.Parse([]byte(text), "edges.hcl")
		require.NoError(t, err)
		return e
	}
	allowed := func(source, destination string) bool {
		ok, _, err := client.Connect().IntentionCheck(&consulapi.IntentionCheck{
			Source: source, Destination: destination, SourceType: consulapi.IntentionSourceConsul,
		}, nil)
		require.NoError(t, err)
		return ok
	}
	kept := &consulapi.ServiceIntentionsConfigEntry{
		Kind: consulapi.ServiceIntentions, Name: "by-hand", Sources: []*consulapi.SourceIntention{{Name: "somebody", Action: consulapi.IntentionActionAllow}},
	}
	_, _, err := client.ConfigEntries().Set(kept, nil)
	require.NoError(t, err)

	const services = "service \"account\" {\n  protocol = \"grpc\"\n}\nservice \"account-db\" {\n  protocol = \"tcp\"\n}\n"
	drawn := parse(services + `
edge "gateway" "account" {
  permission {
    action      = "allow"
    path_prefix = "/marquee.account.v1.AccountService/"
    methods     = ["POST"]
    header "x-debug" {
      present = true
      invert  = true
    }
  }
}
edge "order" "account" {}
edge "account" "account-db" {}`)
	require.NoError(t, meshconfig.Apply(t.Context(), client, drawn))
	require.True(t, allowed("account", "account-db"))
	require.True(t, allowed("order", "account"))
	require.False(t, allowed("gateway", "account-db"))
	entry, _, err := client.ConfigEntries().Get(consulapi.ServiceDefaults, "account", nil)
	require.NoError(t, err)
	require.Equal(t, "grpc", entry.(*consulapi.ServiceConfigEntry).Protocol)
	entry, _, err = client.ConfigEntries().Get(consulapi.ServiceIntentions, "account", nil)
	require.NoError(t, err)
	permission := entry.(*consulapi.ServiceIntentionsConfigEntry).Sources[0].Permissions[0]
	require.Equal(t, "/marquee.account.v1.AccountService/", permission.HTTP.PathPrefix)
	require.True(t, permission.HTTP.Header[0].Invert)

	index := func() uint64 {
		_, meta, err := client.ConfigEntries().List(consulapi.ServiceIntentions, nil)
		require.NoError(t, err)
		_, defaults, err := client.ConfigEntries().List(consulapi.ServiceDefaults, nil)
		require.NoError(t, err)
		_, mesh, err := client.ConfigEntries().List(consulapi.MeshConfig, nil)
		require.NoError(t, err)
		return meta.LastIndex + defaults.LastIndex + mesh.LastIndex
	}
	before := index()
	require.NoError(t, meshconfig.Apply(t.Context(), client, drawn))
	require.Equal(t, before, index(), "applying the same edges wrote something")

	require.NoError(t, meshconfig.SetEdge(t.Context(), client, "account", "account-db", false))
	require.False(t, allowed("account", "account-db"))
	require.NoError(t, meshconfig.SetEdge(t.Context(), client, "account", "account-db", true))
	require.True(t, allowed("account", "account-db"))
	require.NoError(t, meshconfig.SetEdge(t.Context(), client, "gateway", "account-db", true))
	require.True(t, allowed("gateway", "account-db"))

	// Fewer edges, and a protocol for which the permission would be refused.
	require.NoError(t, meshconfig.Apply(t.Context(), client, parse("service \"account\" {\n  protocol = \"tcp\"\n}\nedge \"gateway\" \"account\" {}")))
	require.True(t, allowed("gateway", "account"))
	require.False(t, allowed("order", "account"))
	require.False(t, allowed("account", "account-db"))
	require.False(t, allowed("gateway", "account-db"))
	_, _, err = client.ConfigEntries().Get(consulapi.ServiceDefaults, "account-db", nil)
	var status consulapi.StatusError
	require.ErrorAs(t, err, &status, "the protocol of a service that is gone is still there")
	require.Equal(t, http.StatusNotFound, status.Code)
	require.True(t, allowed("somebody", "by-hand"), "an entry that somebody else wrote was removed")

	require.NoError(t, meshconfig.Apply(t.Context(), client, drawn), "back to permissions on gRPC")
	require.True(t, allowed("order", "account"))
}
