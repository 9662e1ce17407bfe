package stack

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/edges"
)

func TestCalleesFirst(t *testing.T) {
	drawn, err := edges.Parse([]byte(`
		service "account" { protocol = "grpc" }
		service "account-db" { protocol = "tcp" }
		service "device" { protocol = "grpc" }
		service "device-db" { protocol = "tcp" }
		edge "gateway" "account" {}
		edge "gateway" "device" {}
		edge "device" "account" {}
		edge "device" "device-db" {}
		edge "account" "account-db" {}
	`), "edges.hcl")
	require.NoError(t, err)
	circle, err := edges.Parse([]byte(`
		service "a" { protocol = "grpc" }
		service "b" { protocol = "grpc" }
		edge "a" "b" {}
		edge "b" "a" {}
	`), "edges.hcl")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		drawn       edges.Edges
		given, want []string
	}{
		"AsListed":       {drawn, []string{"account", "account-db", "gateway", "device", "device-db"}, []string{"account-db", "account", "device-db", "device", "gateway"}},
		"SomeOfThem":     {drawn, []string{"gateway", "account"}, []string{"account", "gateway"}},
		"NobodyCalls":    {drawn, []string{"nats", "account"}, []string{"nats", "account"}},
		"InACircle":      {circle, []string{"a", "b"}, []string{"b", "a"}},
		"None":           {drawn, nil, nil},
		"NothingIsDrawn": {edges.Edges{}, []string{"b", "a"}, []string{"b", "a"}},
	} {
		t.Run(name, func(t *testing.T) {
			var services []Service
			for _, name := range c.given {
				services = append(services, Service{Name: name})
			}
			var got []string
			for _, s := range calleesFirst(services, c.drawn) {
				got = append(got, s.Name)
			}
			require.Equal(t, c.want, got)
		})
	}
}
