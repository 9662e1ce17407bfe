package scenario

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Port is a row of the list of ports in docs/operations.md.
type Port struct {
	First, Last int
	Protocol    string   // tcp or udp
	On          string   // all, servers, clients or edge
	OpenTo      []string // everyone, operators, cluster or machine
}

// Ports are what the machines of a cluster have open, as written down.
type Ports []Port

// WrittenPorts reads the table below the heading "Ports" of a checkout's
// docs/operations.md. A row that is not understood is an error.
func WrittenPorts(root string) (Ports, error) {
	file := filepath.Join(root, "docs", "operations.md")
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the list of ports: %w", err)
	}
	ports, err := parsePorts(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return ports, nil
}

func parsePorts(text string) (Ports, error) {
	_, section, found := strings.Cut("\n"+text, "\n## Ports\n")
	if !found {
		return nil, fmt.Errorf("there is no heading %q", "## Ports")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	var ports Ports
	header := true
	for line := range strings.Lines(section) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			continue
		}
		var cells []string
		for _, cell := range strings.Split(strings.Trim(line, "|"), "|") {
			cells = append(cells, strings.Trim(strings.TrimSpace(cell), "`"))
		}
		if header {
			if want := []string{"port", "protocol", "on", "open to", "what"}; !slices.Equal(cells, want) {
				return nil, fmt.Errorf("the columns of the ports are %q instead of %q", cells, want)
			}
			header = false
			continue
		}
		if strings.Trim(cells[0], ":-") == "" {
			continue
		}
		port, err := parsePort(cells)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", line, err)
		}
		ports = append(ports, port)
	}
	if len(ports) == 0 {
		return nil, fmt.Errorf("there is no port below %q", "## Ports")
	}
	return ports, nil
}

func parsePort(cells []string) (Port, error) {
	if len(cells) != 5 {
		return Port{}, fmt.Errorf("there are %d columns", len(cells))
	}
	first, last, some := strings.Cut(cells[0], "-")
	if !some {
		last = first
	}
	p := Port{Protocol: cells[1], On: cells[2]}
	var err error
	if p.First, err = strconv.Atoi(first); err != nil {
		return Port{}, err
	}
	if p.Last, err = strconv.Atoi(last); err != nil {
		return Port{}, err
	}
	if p.First < 1 || p.Last < p.First || p.Last > 65535 {
		return Port{}, fmt.Errorf("%s is no port", cells[0])
	}
	for _, known := range []struct {
		value  string
		values []string
	}{{p.Protocol, []string{"tcp", "udp"}}, {p.On, []string{"all", "servers", "clients", "edge"}}} {
		if !slices.Contains(known.values, known.value) {
			return Port{}, fmt.Errorf("%q is none of %s", known.value, strings.Join(known.values, ", "))
		}
	}
	for _, who := range strings.Split(cells[3], ",") {
		who = strings.TrimSpace(who)
		if known := []string{"everyone", "operators", "cluster", "machine"}; !slices.Contains(known, who) {
			return Port{}, fmt.Errorf("%q is none of %s", who, strings.Join(known, ", "))
		}
		p.OpenTo = append(p.OpenTo, who)
	}
	return p, nil
}

// TCP says whether a TCP port may be open to somebody on a machine with these
// roles: servers, clients, edge.
func (p Ports) TCP(port int, to string, roles ...string) bool {
	return slices.ContainsFunc(p, func(row Port) bool {
		return row.Protocol == "tcp" && row.First <= port && port <= row.Last &&
			(row.On == "all" || slices.Contains(roles, row.On)) &&
			(slices.Contains(row.OpenTo, to) || slices.Contains(row.OpenTo, "everyone"))
	})
}
