package scenario

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const page = `# Operations

## Ports

Some words.

| port | protocol | on | open to | what |
| --- | :-: | --- | --- | --- |
| 8080 | tcp | edge | everyone | HTTP |
| ` + "`4646`" + ` | tcp | servers | operators, cluster | Nomad |
| 20000-31999 | tcp | clients | cluster | mesh |
| 8301 | udp | all | cluster | gossip |

## Other

| 22 | tcp | all | everyone | not in the section |
`

func TestPorts(t *testing.T) {
	ports, err := parsePorts(page)
	require.NoError(t, err)
	require.Len(t, ports, 4)
	for _, c := range []struct {
		port  int
		to    string
		roles []string
		want  bool
	}{
		{8080, "everyone", []string{"clients", "edge"}, true},
		{8080, "operators", []string{"clients", "edge"}, true},
		{8080, "everyone", []string{"servers"}, false},
		{4646, "operators", []string{"servers"}, true},
		{4646, "everyone", []string{"servers"}, false},
		{31999, "cluster", []string{"clients"}, true},
		{32000, "cluster", []string{"clients"}, false},
		{8301, "cluster", []string{"servers"}, false}, // UDP
		{22, "everyone", []string{"servers"}, false},
	} {
		require.Equal(t, c.want, ports.TCP(c.port, c.to, c.roles...), "%+v", c)
	}
}

func TestPortsRefused(t *testing.T) {
	for name, c := range map[string]struct{ from, to, want string }{
		"NoHeading": {"## Ports", "## Doors", "no heading"},
		"Columns":   {"| open to |", "| to |", "columns of the ports"},
		"NoNumber":  {"8080", "http", "invalid syntax"},
		"Range":     {"20000-31999", "31999-20000", "is no port"},
		"Protocol":  {"tcp | edge", "sctp | edge", `"sctp" is none of`},
		"Machines":  {"| servers |", "| some |", `"some" is none of`},
		"Who":       {"operators, cluster", "friends", `"friends" is none of`},
		"Missing":   {"| edge | everyone | HTTP |", "| edge | HTTP |", "4 columns"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, page, c.from)
			_, err := parsePorts(strings.Replace(page, c.from, c.to, 1))
			require.ErrorContains(t, err, c.want)
		})
	}
}
