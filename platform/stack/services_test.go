package stack_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

// The services of this checkout: what they run is there to be built.
func TestReadServices(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	services, err := stack.ReadServices(root)
	require.NoError(t, err)
	programs, err := release.Packages(root)
	require.NoError(t, err)
	found := map[string]stack.Service{}
	for _, s := range services {
		require.FileExists(t, filepath.Join(root, s.File))
		for _, program := range s.Binaries {
			require.NotEmpty(t, programs[program], "%s runs %s", s.Name, program)
		}
		for _, secret := range s.Secrets {
			require.True(t, secret.CopyOf == "" || found[secret.CopyOf].Name != "", "%s copies from %s before that is made", s.Name, secret.CopyOf)
		}
		found[s.Name] = s
	}
	require.Contains(t, found, "gateway")
	require.Equal(t, map[string]string{"name": "account-db"}, found["account-db"].Variables)
	require.True(t, found["account-db"].KeepsData)
	require.Equal(t, map[string]string{"account_binary": "accountd"}, found["account"].Binaries)
	require.Len(t, found["account"].Secrets, 2)
	require.True(t, found["device"].Local)
	require.True(t, found["device-db"].Local)
	require.False(t, found["account-db"].Local)

	names := func(target stack.Target) (names []string) {
		s, err := stack.Open(stack.Config{Root: root, Target: target, Services: services})
		require.NoError(t, err)
		for _, service := range s.Services() {
			names = append(names, service.Name)
		}
		return names
	}
	require.Equal(t, []string{"account-db", "account", "gateway"}, names(stack.OnMachines(stack.Machines{Name: "far"})))
}

func TestReadServicesErrors(t *testing.T) {
	for name, c := range map[string]struct{ text, why string }{
		"Syntax":       {"service \"account\" {", "nomad-jobs/services.hcl:1"},
		"Unknown":      {"service \"account\" {\n  replicas = 3\n}\n", "replicas"},
		"Name":         {"service \"Account\" {}\n", "lower-case letters"},
		"Twice":        {"service \"account\" {}\nservice \"account\" {}\n", "nomad-jobs/services.hcl:2: service \"account\": the job account is there twice"},
		"DatabaseName": {"service \"account-db\" {}\nservice \"account\" {\n  database = true\n}\n", "the job account-db is there twice"},
		"NoJobFile":    {"service \"order\" {}\n", "it has no job file"},
		"Secret":       {"service \"account\" {\n  secrets = [\"Key\"]\n}\n", "the secret \"Key\""},
		"Password":     {"service \"account\" {\n  database = true\n  secrets  = [\"database_password\"]\n}\n", "which a database comes with"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			require.NoError(t, os.Mkdir(filepath.Join(root, "nomad-jobs"), 0o755))
			for file, text := range map[string]string{"services.hcl": c.text, "account.nomad.hcl": "", "account-db.nomad.hcl": "", "postgres.nomad.hcl": ""} {
				require.NoError(t, os.WriteFile(filepath.Join(root, "nomad-jobs", file), []byte(text), 0o600))
			}
			_, err := stack.ReadServices(root)
			require.ErrorContains(t, err, c.why)
		})
	}
	_, err := stack.ReadServices(t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
}
