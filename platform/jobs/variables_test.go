package jobs_test

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/tools"
)

// A job file runs alone, and HCL knows no includes: what several declare stands in
// each, and must be the same text there. What differs does so for a reason.
var differs = map[string]map[string]string{
	"driver": {
		"postgres.nomad.hcl":        "Postgres is the machine's, there is no image of it",
		"nats.nomad.hcl":            "there is no image of it, either",
		"players.nomad.hcl":         "it runs on this machine's cluster only",
		"sidecar/account.nomad.hcl": "Envoy runs by it, too, and has no image",
	},
	"host_network":      {"gateway.nomad.hcl": "nobody in the mesh calls it"},
	"healthy_deadline":  {"postgres.nomad.hcl": "a database may have to recover first"},
	"progress_deadline": {"postgres.nomad.hcl": "a database may have to recover first"},
	"account_binary":    {"sidecar/account.nomad.hcl": "it runs on a machine of its own, without artifacts and images"},
	"account_count":     {"sidecar/account.nomad.hcl": "each has an Envoy beside it"},
}

// unread are variables that a job file declares for the variable files' sake.
var unread = map[string]string{"gateway.nomad.hcl": "host_network", "players.nomad.hcl": "host_network"}

// placement names the metadata that the job's machines have.
var placement = regexp.MustCompile(`metadata has marquee_[a-z]+ = true`)

// jobFile is a job file's source: its variable blocks by name, and the rest.
type jobFile struct {
	variables map[string]string
	rest      string
}

func readJobFile(t *testing.T, path string) jobFile {
	t.Helper()
	source, err := os.ReadFile(path)
	require.NoError(t, err)
	parsed, diags := hclsyntax.ParseConfig(source, path, hcl.InitialPos)
	require.False(t, diags.HasErrors(), diags)
	body, ok := parsed.Body.(*hclsyntax.Body)
	require.True(t, ok)
	file := jobFile{variables: map[string]string{}}
	for _, block := range body.Blocks {
		text := string(source[block.Range().Start.Byte:block.CloseBraceRange.End.Byte])
		if block.Type == "variable" {
			file.variables[block.Labels[0]] = placement.ReplaceAllString(text, "metadata has it")
		} else {
			file.rest += text
		}
	}
	require.NotEmpty(t, file.variables, path)
	return file
}

func TestVariablesOfJobFiles(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	folder := filepath.Join(root, "nomad-jobs")
	files := map[string]jobFile{}
	for _, pattern := range []string{"*.nomad.hcl", "sidecar/*.nomad.hcl"} {
		paths, err := filepath.Glob(filepath.Join(folder, pattern))
		require.NoError(t, err)
		for _, path := range paths {
			name, err := filepath.Rel(folder, path)
			require.NoError(t, err)
			files[name] = readJobFile(t, path)
		}
	}
	for _, name := range []string{"account.nomad.hcl", "gateway.nomad.hcl", "postgres.nomad.hcl", "sidecar/account.nomad.hcl"} {
		require.Contains(t, files, name)
	}

	t.Run("TheSameText", func(t *testing.T) {
		shared := map[string][]string{} // by variable, the files that declare it
		for name, file := range files {
			for variable := range file.variables {
				shared[variable] = append(shared[variable], name)
			}
		}
		for variable, names := range shared {
			slices.Sort(names)
			model := slices.IndexFunc(names, func(name string) bool { return differs[variable][name] == "" })
			require.GreaterOrEqual(t, model, 0, variable)
			want := files[names[model]].variables[variable]
			for _, name := range names {
				if why := differs[variable][name]; why != "" {
					require.NotEqual(t, want, files[name].variables[variable], "%s of %s is as elsewhere: take it from the exceptions (%s)", variable, name, why)
					continue
				}
				require.Equal(t, want, files[name].variables[variable], "%s: %s differs from %s", variable, name, names[model])
			}
		}
		for variable, names := range differs {
			for name := range names {
				if _, there := files[name]; there {
					require.Contains(t, shared[variable], name, "an exception for what is not there")
				}
			}
		}
	})

	t.Run("AllAreRead", func(t *testing.T) {
		for name, file := range files {
			for variable := range file.variables {
				read := regexp.MustCompile(`\bvar\.` + variable + `\b`).MatchString(file.rest)
				require.Equal(t, unread[name] != variable, read, "%s declares %s", name, variable)
			}
		}
	})

	// As local.hcl says of itself: nomad refuses values for what is not declared.
	t.Run("Local", func(t *testing.T) {
		names, err := jobs.VariablesIn(filepath.Join(folder, "vars", "local.hcl"))
		require.NoError(t, err)
		for file := range files {
			if strings.Contains(file, "/") {
				continue // local.hcl does not serve there, as it says
			}
			for _, name := range names {
				require.Contains(t, files[file].variables, name, file)
			}
		}
	})

	t.Run("Production", func(t *testing.T) {
		names, err := jobs.VariablesIn(filepath.Join(folder, "vars", "production.hcl"))
		require.NoError(t, err)
		for _, name := range names {
			declared := slices.ContainsFunc(slices.Collect(maps.Values(files)), func(f jobFile) bool { return f.variables[name] != "" })
			require.True(t, declared, "no job file declares %s", name)
		}
	})
}
