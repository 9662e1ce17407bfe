package mesh

import (
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseIdentity(t *testing.T) {
	for name, c := range map[string]struct {
		uri  string
		want Identity // zero: refused
	}{
		"OK":                  {"spiffe://11111111-2222.consul/ns/default/dc/dc1/svc/account", Identity{"11111111-2222.consul", "dc1", "account"}},
		"OKUpperCaseDomain":   {"spiffe://ABC.Consul/ns/default/dc/dc1/svc/account-db", Identity{"abc.consul", "dc1", "account-db"}},
		"OKEscaped":           {"spiffe://a.consul/ns/default/dc/dc1/svc/my%20service", Identity{"a.consul", "dc1", "my service"}},
		"ErrScheme":           {"https://a.consul/ns/default/dc/dc1/svc/account", Identity{}},
		"ErrNoDomain":         {"spiffe:///ns/default/dc/dc1/svc/account", Identity{}},
		"ErrPort":             {"spiffe://a.consul:443/ns/default/dc/dc1/svc/account", Identity{}},
		"ErrUser":             {"spiffe://u@a.consul/ns/default/dc/dc1/svc/account", Identity{}},
		"ErrQuery":            {"spiffe://a.consul/ns/default/dc/dc1/svc/account?x=1", Identity{}},
		"ErrFragment":         {"spiffe://a.consul/ns/default/dc/dc1/svc/account#x", Identity{}},
		"ErrOpaque":           {"spiffe:a.consul", Identity{}},
		"ErrNamespace":        {"spiffe://a.consul/ns/other/dc/dc1/svc/account", Identity{}},
		"ErrPartition":        {"spiffe://a.consul/ap/p/ns/default/dc/dc1/svc/account", Identity{}},
		"ErrAgent":            {"spiffe://a.consul/agent/client/dc/dc1/id/node", Identity{}},
		"ErrMeshGateway":      {"spiffe://a.consul/gateway/mesh/dc/dc1", Identity{}},
		"ErrSigningID":        {"spiffe://a.consul", Identity{}},
		"ErrEmptyService":     {"spiffe://a.consul/ns/default/dc/dc1/svc/", Identity{}},
		"ErrEmptyDatacenter":  {"spiffe://a.consul/ns/default/dc//svc/account", Identity{}},
		"ErrMore":             {"spiffe://a.consul/ns/default/dc/dc1/svc/account/x", Identity{}},
		"ErrTrailingSlash":    {"spiffe://a.consul/ns/default/dc/dc1/svc/account/", Identity{}},
		"ErrEscapedSlash":     {"spiffe://a.consul/ns/default/dc/dc1/svc/a%2Fb", Identity{}},
		"ErrControlCharacter": {"spiffe://a.consul/ns/default/dc/dc1/svc/a%00", Identity{}},
	} {
		t.Run(name, func(t *testing.T) {
			uri, err := url.Parse(c.uri)
			require.NoError(t, err)
			id, err := ParseIdentity(uri)
			if c.want == (Identity{}) {
				require.Error(t, err)
				require.Zero(t, id)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, id)
		})
	}
}

// FuzzParseIdentity: what is accepted names every part, and is the same after
// being written and read again, so that no two texts of one identity differ.
func FuzzParseIdentity(f *testing.F) {
	for _, seed := range []string{
		"spiffe://a.consul/ns/default/dc/dc1/svc/account",
		"spiffe://a.consul/ns/default/dc/dc1/svc/a%2Fb",
		"spiffe://a.consul/ns/default/dc/dc1/svc/%2e%2e",
		"spiffe://a.consul/ap/p/ns/default/dc/dc1/svc/account",
		"spiffe://a.consul//ns/default/dc/dc1/svc/account",
		"spiffe://[::1]/ns/default/dc/dc1/svc/x",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		uri, err := url.Parse(text)
		if err != nil {
			return
		}
		id, err := ParseIdentity(uri)
		if err != nil {
			require.Zero(t, id)
			return
		}
		require.NotEmpty(t, id.TrustDomain)
		require.NotEmpty(t, id.Datacenter)
		require.NotEmpty(t, id.Service)
		require.NotContains(t, id.Service, "/")
		again, err := url.Parse(id.String())
		require.NoError(t, err)
		same, err := ParseIdentity(again)
		require.NoError(t, err)
		require.Equal(t, id, same)
	})
}
