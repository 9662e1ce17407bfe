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
	require.True(t, found["order"].Local)
	require.True(t, found["order-db"].Local)
	require.True(t, found["nats"].Local, "device and order have events, and both are local")
	require.True(t, found["nats"].KeepsData)
	require.Equal(t, map[string]string{"nats_binary": "natsd", "proxy_binary": "meshproxyd"}, found["nats"].Binaries)
	require.Equal(t, []string{"admin_password", "routes", "device_password", "order_password"}, fields(found["nats"].Secrets))
	require.Equal(t, []string{"database_password", "nats_password"}, fields(found["device"].Secrets))
	require.Equal(t, []string{"database_password", "nats_password"}, fields(found["order"].Secrets))
	require.Equal(t, "device_password", found["device"].Secrets[1].CopyField)
	require.NotContains(t, fields(found["account"].Secrets), "nats_password")
	require.Contains(t, stack.DataJobs(services), "nats")

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

func fields(secrets []stack.Secret) (names []string) {
	for _, secret := range secrets {
		names = append(names, secret.Field)
	}
	return names
}

// write makes a checkout that has these services.
func write(t *testing.T, services string, files ...string) (root string) {
	t.Helper()
	root = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "nomad-jobs"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "nomad-jobs", "services.hcl"), []byte(services), 0o600))
	for _, file := range files {
		require.NoError(t, os.WriteFile(filepath.Join(root, "nomad-jobs", file), nil, 0o600))
	}
	return root
}

// NATS is there once, before the first that needs it, with a user for each, and
// runs where any of them does.
func TestReadServicesEvents(t *testing.T) {
	root := write(t, `
service "account" {}
service "play-out" {
  events = true
  local  = true
}
service "order" {
  events  = true
  secrets = ["key"]
}
`, "account.nomad.hcl", "play-out.nomad.hcl", "order.nomad.hcl", "nats.nomad.hcl")
	services, err := stack.ReadServices(root)
	require.NoError(t, err)
	require.Len(t, services, 4)
	nats, playOut, order := services[1], services[2], services[3]
	require.Equal(t, "nats", nats.Name)
	require.False(t, nats.Local)
	require.Equal(t, []string{"admin_password", "routes", "play_out_password", "order_password"}, fields(nats.Secrets))
	passwords := map[string]bool{}
	for _, secret := range nats.Secrets {
		passwords[secret.Generate()] = true
	}
	require.Len(t, passwords, 4)
	require.Equal(t, []stack.Secret{{Field: "nats_password", CopyOf: "nats", CopyField: "play_out_password"}}, playOut.Secrets)
	require.Equal(t, []string{"key", "nats_password"}, fields(order.Secrets))
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
		"NatsPassword": {"service \"account\" {\n  events  = true\n  secrets = [\"nats_password\"]\n}\n", "which events come with"},
		"NoNats":       {"service \"account\" {\n  events = true\n}\n", "events need NATS, which has no job file"},
		"NatsName":     {"service \"nats\" {\n  events = true\n}\n", "the job nats is there twice"},
		"Operators":    {"service \"admin\" {\n  events = true\n}\n", "the user admin of NATS is for operators"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := stack.ReadServices(write(t, c.text, "account.nomad.hcl", "account-db.nomad.hcl", "postgres.nomad.hcl"))
			require.ErrorContains(t, err, c.why)
		})
	}
	_, err := stack.ReadServices(t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
}
