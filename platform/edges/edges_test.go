package edges

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

const good = `
service "account" { protocol = "grpc" }
service "account-db" { protocol = "tcp" }
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
edge "account" "account-db" {}
`

func TestLoad(t *testing.T) {
	t.Run("OK", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "edges.hcl")
		require.NoError(t, os.WriteFile(path, []byte(good), 0o600))
		e, err := Load(path)
		require.NoError(t, err)
		require.Equal(t, []Service{{"account", GRPC}, {"account-db", TCP}}, e.Services())
		require.Equal(t, []string{"account", "account-db", "gateway"}, e.Identities())
		require.True(t, e.Allowed("gateway", "account"))
		require.True(t, e.Allowed("account", "account-db"))
		require.False(t, e.Allowed("account", "gateway"))
		require.False(t, e.Allowed("gateway", "account-db"))
		require.False(t, e.Allowed("account", "account"))
		edge, ok := e.Find("gateway", "account")
		require.True(t, ok)
		require.Equal(t, []Permission{{
			Allow: true, PathPrefix: "/marquee.account.v1.AccountService/", Methods: []string{"POST"},
			Headers: []Header{{Name: "x-debug", Present: true, Invert: true}},
		}}, edge.Permissions)
	})
	t.Run("OursIsGood", func(t *testing.T) {
		e, err := Load("../../nomad-jobs/edges.hcl")
		require.NoError(t, err)
		require.True(t, e.Allowed("gateway", "account"))
		require.False(t, e.Allowed("gateway", "account-db"))
	})
	t.Run("ErrNoFile", func(t *testing.T) {
		_, err := Load(filepath.Join(t.TempDir(), "edges.hcl"))
		require.ErrorIs(t, err, os.ErrNotExist)
	})
}

func TestParseErrors(t *testing.T) {
	const services = "service \"a\" {\n  protocol = \"grpc\"\n}\nservice \"db\" {\n  protocol = \"tcp\"\n}\n"
	permission := func(inside string) string {
		return services + "edge \"b\" \"a\" {\n  permission {\n" + inside + "\n  }\n}"
	}
	for name, c := range map[string]struct{ text, want string }{
		"NotHCL":            {`edge "a`, "edges.hcl:1"},
		"UnknownBlock":      {`arrow "a" "b" {}`, "arrow"},
		"UnknownArgument":   {services + `edge "b" "a" { colour = 1 }`, "colour"},
		"NoProtocol":        {`service "a" {}`, "protocol"},
		"ProtocolUnknown":   {"service \"a\" {\n  protocol = \"http\"\n}", `edges.hcl:1: service "a": protocol "http" must be "grpc" or "tcp"`},
		"NameBad":           {"service \"A_b\" {\n  protocol = \"grpc\"\n}", "lower-case letters"},
		"ServiceTwice":      {services + services, `edges.hcl:7: service "a" is there twice`},
		"EdgeTwice":         {services + "edge \"b\" \"a\" {}\nedge \"b\" \"a\" {}", `edges.hcl:8: edge "b" "a" is there twice`},
		"Wildcard":          {services + `edge "*" "a" {}`, "no wildcard"},
		"DestinationAbsent": {services + `edge "a" "c" {}`, `there is no service "c"`},
		"PermissionOnTCP":   {services + "edge \"a\" \"db\" {\n  permission {\n    action     = \"allow\"\n    path_exact = \"/x\"\n  }\n}", `needs protocol "grpc"`},
		"ActionUnknown":     {permission("action = \"maybe\"\npath_exact = \"/x\""), `"allow" or "deny"`},
		"TwoPaths":          {permission("action = \"allow\"\npath_exact = \"/x\"\npath_prefix = \"/\""), "exclude each other"},
		"PathRelative":      {permission("action = \"allow\"\npath_exact = \"x\""), "must start with /"},
		"RegexBad":          {permission("action = \"allow\"\npath_regex = \"(\""), "path_regex"},
		"PermissionEmpty":   {permission("action = \"allow\""), "names no path"},
		"HeaderEmpty":       {permission("action = \"allow\"\nheader \"x\" {}"), "exactly one of"},
		"HeaderTwoWays":     {permission("action = \"allow\"\nheader \"x\" {\nexact = \"a\"\nprefix = \"b\"\n}"), "exactly one of"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte(c.text), "some/where/edges.hcl")
			require.ErrorContains(t, err, c.want)
		})
	}
	t.Run("AllAtOnce", func(t *testing.T) {
		_, err := Parse([]byte("edge \"a\" \"c\" {}\nedge \"a\" \"d\" {}"), "edges.hcl")
		require.ErrorContains(t, err, `"c"`)
		require.ErrorContains(t, err, `"d"`)
	})
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte(`edge "a" "b" { permission {} }`))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := Parse(text, "edges.hcl")
		if err != nil {
			return
		}
		for _, d := range e.Edges() {
			if !e.Allowed(d.Source, d.Destination) {
				t.Fatalf("a drawn edge is not allowed: %v", d)
			}
		}
	})
}
