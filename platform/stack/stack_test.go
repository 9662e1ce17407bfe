package stack_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	consul "github.com/hashicorp/consul/api"
	nomad "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/stack"
	"github.com/marquee-ads/marquee/platform/tools"
)

// TestDatabase brings up the part of the platform that needs nothing else, the
// database, and looks at everything that Up promises: secrets made once, edges
// drawn, healthy instances, nothing changed by a second time.
func TestDatabase(t *testing.T) {
	root, err := tools.Root()
	require.NoError(t, err)
	// Not t.TempDir: a cluster's folder wants a short path.
	dir, err := os.MkdirTemp("", "stack")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o711))
	services, err := stack.ReadServices(root)
	require.NoError(t, err)
	services = services[:2]
	require.Equal(t, "account-db", services[0].Name)
	open := func() *stack.Stack {
		s, err := stack.Open(stack.Config{
			Root: root, Cluster: cluster.Config{Dir: filepath.Join(dir, "c")}, Services: services,
			Progress: func(line string) { t.Log(line) },
		})
		require.NoError(t, err)
		return s
	}
	s := open()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		require.NoError(t, s.Cluster().Wipe(ctx))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()

	require.NoError(t, s.Prepare(ctx))
	secrets := func() map[string]nomad.VariableItems {
		all := make(map[string]nomad.VariableItems)
		for _, service := range services {
			variable, _, err := s.Cluster().Nomad().Variables().Read("nomad/jobs/"+service.Name, nil)
			require.NoError(t, err)
			delete(variable.Items, "data")
			all[service.Name] = variable.Items
		}
		return all
	}
	before := secrets()
	require.NotEmpty(t, before["account-db"]["password"])
	require.Equal(t, before["account-db"]["password"], before["account"]["database_password"])
	require.Len(t, before["account"]["key_encryption_key"], 44, "32 bytes in base64")

	allowed, _, err := s.Cluster().Consul().Connect().IntentionCheck(&consul.IntentionCheck{Source: "account", Destination: "account-db"}, nil)
	require.NoError(t, err)
	require.True(t, allowed)

	deployed, err := s.Deploy(ctx, "account-db", nil)
	require.NoError(t, err)
	require.False(t, deployed.Unchanged)
	database, err := s.Jobs().Service(ctx, "account-db")
	require.NoError(t, err)
	require.True(t, database.Ready())
	variable, _, err := s.Cluster().Nomad().Variables().Read("nomad/jobs/account-db", nil)
	require.NoError(t, err)
	require.Equal(t, "kept", variable.Items["data"])
	require.Contains(t, filepath.Dir(mustVariable(t, s, "postgres_binary")), database.Instances[0].Release)
	require.NoError(t, s.Prune(ctx))
	require.FileExists(t, mustVariable(t, s, "postgres_binary"))

	t.Run("SecondTimeChangesNothing", func(t *testing.T) {
		again := open()
		require.NoError(t, again.Prepare(ctx))
		deployed, err := again.Deploy(ctx, "account-db", nil)
		require.NoError(t, err)
		require.True(t, deployed.Unchanged)
		require.Equal(t, before, secrets())
		after, err := again.Jobs().Service(ctx, "account-db")
		require.NoError(t, err)
		require.Equal(t, database.Instances[0].ID, after.Instances[0].ID)
	})

	t.Run("DataSurvivesARestart", func(t *testing.T) {
		marker := filepath.Join(s.Cluster().Volumes(), "account-db", "data", "PG_VERSION")
		made, err := os.Stat(marker)
		require.NoError(t, err)
		require.NoError(t, s.Jobs().Restart(ctx, "account-db", nil))
		kept, err := os.Stat(marker)
		require.NoError(t, err)
		require.Equal(t, made.ModTime(), kept.ModTime())
	})

	t.Run("ByHand", func(t *testing.T) {
		environment, err := s.ByHand(ctx, "account")
		require.NoError(t, err)
		content, err := os.ReadFile(environment["MARQUEE_KEY_ENCRYPTION_KEY_FILE"])
		require.NoError(t, err)
		require.Equal(t, before["account"]["key_encryption_key"], string(content))
		info, err := os.Stat(environment["MARQUEE_DATABASE_PASSWORD_FILE"])
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

		token, _, err := s.Cluster().Consul().ACL().TokenReadSelf(&consul.QueryOptions{Token: environment["CONSUL_HTTP_TOKEN"]})
		require.NoError(t, err)
		require.Empty(t, token.Policies)
		require.Len(t, token.ServiceIdentities, 1)
		require.Equal(t, "account", token.ServiceIdentities[0].ServiceName)

		again, err := s.ByHand(ctx, "account")
		require.NoError(t, err)
		require.Equal(t, environment, again)
		_, err = s.ByHand(ctx, "nothing")
		require.ErrorContains(t, err, "want one of account-db, account")
	})

	// A service that has events from now on is one user more, and the others keep
	// their passwords.
	t.Run("UsersOfNATS", func(t *testing.T) {
		read := func(service string) nomad.VariableItems {
			variable, _, err := s.Cluster().Nomad().Variables().Read("nomad/jobs/"+service, nil)
			require.NoError(t, err)
			return variable.Items
		}
		prepare := func(text string) {
			services, err := stack.ReadServices(write(t, text, "order.nomad.hcl", "billing.nomad.hcl", "nats.nomad.hcl"))
			require.NoError(t, err)
			for i := range services {
				services[i].Binaries = nil // nothing is deployed
			}
			with, err := stack.Open(stack.Config{Root: root, Cluster: cluster.Config{Dir: filepath.Join(dir, "c")}, Services: services})
			require.NoError(t, err)
			require.NoError(t, with.Prepare(ctx))
		}
		const order = "service \"order\" {\n  events = true\n}\n"
		prepare(order)
		first := read("nats")
		require.Len(t, first, 3)
		require.NotEmpty(t, first["admin_password"])
		require.Equal(t, nomad.VariableItems{"nats_password": first["order_password"]}, read("order"))
		prepare(order + "service \"billing\" {\n  events = true\n}\n")
		second := read("nats")
		require.Len(t, second, 4)
		require.Equal(t, first["admin_password"], second["admin_password"])
		require.Equal(t, first["order_password"], second["order_password"])
		require.Equal(t, nomad.VariableItems{"nats_password": second["billing_password"]}, read("billing"))
		require.NotEqual(t, second["order_password"], second["billing_password"])
	})

	t.Run("Orphans", func(t *testing.T) {
		orphans, err := s.Orphans(ctx)
		require.NoError(t, err)
		require.Empty(t, orphans)
		// A checkout whose nomad-jobs/ has the database no more.
		without, err := stack.Open(stack.Config{Root: root, Cluster: cluster.Config{Dir: filepath.Join(dir, "c")}, Services: services[1:]})
		require.NoError(t, err)
		orphans, err = without.Orphans(ctx)
		require.NoError(t, err)
		require.Equal(t, []string{"account-db"}, orphans)
		stopped, err := without.StopOrphans(ctx)
		require.NoError(t, err)
		require.Equal(t, orphans, stopped)
		orphans, err = without.Orphans(ctx)
		require.NoError(t, err)
		require.Empty(t, orphans)
	})

	t.Run("EmptyVolumeIsRefused", func(t *testing.T) {
		require.NoError(t, os.RemoveAll(filepath.Join(s.Cluster().Volumes(), "account-db")))
		deploying, stop := context.WithCancel(ctx)
		deployed := make(chan error, 1)
		go func() {
			_, err := s.Deploy(deploying, "account-db", nil)
			deployed <- err
		}()
		require.Eventually(t, func() bool {
			var logs strings.Builder
			err := s.Jobs().Logs(ctx, "account-db", jobs.LogOptions{Lines: 20}, &logs)
			return err == nil && strings.Contains(logs.String(), "bring back the machine or the volume that has its data")
		}, 2*time.Minute, 200*time.Millisecond)
		stop()
		require.Error(t, <-deployed)
		require.NoFileExists(t, filepath.Join(s.Cluster().Volumes(), "account-db", "data", "PG_VERSION"))
	})

	t.Run("NobodyAtTheDoor", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		_, err := s.WaitServed(ctx, "/")
		require.ErrorContains(t, err, "no gateway is healthy")
		require.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func mustVariable(t *testing.T, s *stack.Stack, name string) string {
	t.Helper()
	variables, err := s.Variables()
	require.NoError(t, err)
	require.NotEmpty(t, variables[name], strings.Join([]string{"no variable", name}, " "))
	return variables[name]
}
