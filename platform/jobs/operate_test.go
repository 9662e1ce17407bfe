package jobs_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/jobs"
)

// testOperate does to a job that runs twice what an operator does: each step
// starts from what the one before left.
func testOperate(t *testing.T, client *jobs.Client, nomad *nomadapi.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	// Nomad's shortest life of a token is a minute: it passes meanwhile.
	short, _, err := nomad.ACLTokens().Create(&nomadapi.ACLToken{Name: "short", Type: "management", ExpirationTTL: 61 * time.Second}, nil)
	require.NoError(t, err)
	job, err := client.Load(ctx, probe(t, nil))
	require.NoError(t, err)
	_, err = client.Deploy(ctx, job, nil)
	require.NoError(t, err)
	instances := func(t *testing.T) []jobs.Instance {
		t.Helper()
		service, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		return service.Instances
	}

	t.Run("Exec", func(t *testing.T) {
		one := instances(t)[0]
		var stdout, stderr bytes.Buffer
		code, err := client.Exec(ctx, one.AllocID[:9], jobs.ExecOptions{
			Command: []string{"/bin/sh", "-c", "cat; echo out; echo err >&2; exit 7"},
			Stdin:   strings.NewReader("in\n"), Stdout: &stdout, Stderr: &stderr,
		})
		require.NoError(t, err)
		require.Equal(t, 7, code)
		require.Equal(t, "in\nout\n", stdout.String())
		require.Equal(t, "err\n", stderr.String())

		stdout.Reset()
		code, err = client.Exec(ctx, one.AllocID, jobs.ExecOptions{
			Task: "probe", Command: []string{"/bin/sh", "-c", "echo $NOMAD_ALLOC_ID"}, Stdout: &stdout, Stderr: &stderr,
		})
		require.NoError(t, err)
		require.Zero(t, code)
		require.Equal(t, one.AllocID+"\n", stdout.String(), "the task's own environment")
	})

	t.Run("ExecRefuses", func(t *testing.T) {
		all := instances(t)
		options := jobs.ExecOptions{Command: []string{"/bin/true"}, Stdout: &bytes.Buffer{}, Stderr: &bytes.Buffer{}}
		_, err := client.Exec(ctx, "probe", options)
		require.ErrorContains(t, err, "2 instances of job probe run: say which")
		for _, i := range all {
			require.ErrorContains(t, err, jobs.Short(i.AllocID))
		}
		_, err = client.Exec(ctx, "nothing", options)
		require.ErrorContains(t, err, `there is no job "nothing"; there are probe`)
		_, err = client.Exec(ctx, "0123456789", options)
		require.ErrorContains(t, err, "there is no job")
		options.Task = "other"
		_, err = client.Exec(ctx, all[0].AllocID, options)
		require.ErrorContains(t, err, `no task "other"`)
		require.ErrorContains(t, err, "running: probe")
		options.Task, options.Command = "", []string{"/no/such/program"}
		code, err := client.Exec(ctx, all[0].AllocID, options)
		require.True(t, err != nil || code != 0)
	})

	t.Run("Usage", func(t *testing.T) {
		// The machine measures once a second.
		require.Eventually(t, func() bool {
			usage, err := client.Usage(ctx, "probe")
			return err == nil && len(usage) == 2 && usage[0].Memory > 1<<20 && usage[0].GivenMemory == 32<<20 && usage[0].GivenCPU == 20
		}, 20*time.Second, 200*time.Millisecond)
	})

	t.Run("Scale", func(t *testing.T) {
		before := instances(t)
		var last jobs.Progress
		require.NoError(t, client.Scale(ctx, "probe", 3, func(p jobs.Progress) { last = p }))
		require.Equal(t, jobs.Progress{Job: "probe", Healthy: 3, Desired: 3, Message: "healthy"}, last)
		after := instances(t)
		require.Len(t, after, 3)
		service := jobs.Service{Instances: after}
		for _, i := range before {
			_, still := service.Instance(i.AllocID)
			require.True(t, still, "scaling replaces nothing")
		}
		require.NoError(t, client.Scale(ctx, "probe", 3, nil), "nothing to do is no error")
		require.ErrorContains(t, client.Scale(ctx, "probe", 4, nil), "no more than 3")
		require.ErrorContains(t, client.Scale(ctx, "probe", 0, nil), "no fewer than 1")
		require.ErrorContains(t, client.Scale(ctx, "nothing", 1, nil), `there is no job "nothing"`)
		require.Len(t, instances(t), 3)
	})

	t.Run("Effective", func(t *testing.T) {
		effective, err := client.Effective(ctx, "probe")
		require.NoError(t, err)
		require.Equal(t, "running", effective.Status)
		require.Equal(t, 3, *effective.Spec.TaskGroups[0].Count)
		require.Equal(t, jobs.Value{Expression: "2", Default: true}, effective.Variables["probe_count"])
		require.False(t, effective.Variables["binary"].Default)
		require.Contains(t, effective.Variables["binary"].Expression, "jobs.test")
	})

	t.Run("Nodes", func(t *testing.T) {
		nodes, err := client.Nodes(ctx)
		require.NoError(t, err)
		require.Len(t, nodes, 1)
		require.Equal(t, "ready", nodes[0].Status)
		require.True(t, nodes[0].Eligible)
		require.Equal(t, "default", nodes[0].Pool)
		require.Len(t, nodes[0].Instances, 3)
		require.Contains(t, nodes[0].Meta, "marquee_cluster")
	})

	t.Run("Meta", func(t *testing.T) {
		nodes, err := client.Nodes(ctx)
		require.NoError(t, err)
		name, yes, no := nodes[0].Name, "yes", "no"
		require.NoError(t, client.SetMeta(ctx, name, map[string]*string{"probes": &yes}, nil))
		job, err := client.Load(ctx, probe(t, map[string]string{"wants_probes": "true"}))
		require.NoError(t, err)
		_, err = client.Deploy(ctx, job, nil)
		require.NoError(t, err, "the new metadata places it")

		before := instances(t)
		err = client.SetMeta(ctx, nodes[0].ID[:8], map[string]*string{"probes": &no}, nil)
		require.ErrorContains(t, err, "stays on "+name, "there is no other machine")
		require.Equal(t, before, instances(t), "and what runs was left running")
		require.NoError(t, client.SetMeta(ctx, name, map[string]*string{"probes": &yes}, nil))
		require.ErrorContains(t, client.SetMeta(ctx, "nowhere", nil, nil), `there is no machine "nowhere"; there are `+name)

		job, err = client.Load(ctx, probe(t, nil))
		require.NoError(t, err)
		_, err = client.Deploy(ctx, job, nil)
		require.NoError(t, err)
		require.NoError(t, client.SetMeta(ctx, name, map[string]*string{"probes": nil}, nil))
		nodes, err = client.Nodes(ctx)
		require.NoError(t, err)
		require.NotContains(t, nodes[0].Meta, "probes")
	})

	t.Run("DrainAndEligibility", func(t *testing.T) {
		nodes, err := client.Nodes(ctx)
		require.NoError(t, err)
		name := nodes[0].Name
		// There is nowhere to go: the deadline stops them.
		require.NoError(t, client.Drain(ctx, name, 2*time.Second, false, nil))
		nodes, err = client.Nodes(ctx)
		require.NoError(t, err)
		require.False(t, nodes[0].Eligible)
		require.Empty(t, nodes[0].Instances)

		require.NoError(t, client.SetEligible(ctx, name, true))
		service, err := client.WaitReady(ctx, "probe")
		require.NoError(t, err)
		require.Equal(t, 2, service.Healthy, "they come back by themselves")
		require.NoError(t, client.SetEligible(ctx, name, false))
		require.NoError(t, client.SetEligible(ctx, name, true))
	})

	t.Run("Managed", func(t *testing.T) {
		managed, err := client.Managed(ctx)
		require.NoError(t, err)
		require.Equal(t, []string{"probe"}, managed)
		require.NoError(t, client.Stop(ctx, "probe", false))
		managed, err = client.Managed(ctx)
		require.NoError(t, err)
		require.Empty(t, managed, "a stopped job is nobody's orphan")
		require.ErrorContains(t, client.Scale(ctx, "probe", 2, nil), "the job is stopped")
		_, err = client.Exec(ctx, "probe", jobs.ExecOptions{Command: []string{"/bin/true"}})
		require.ErrorContains(t, err, "no instance of job probe runs")
		require.NoError(t, client.Stop(ctx, "probe", true))
	})

	t.Run("Programs", func(t *testing.T) {
		before, err := client.Programs(ctx)
		require.NoError(t, err)
		// It waits to be dispatched: nothing of it runs.
		fetched := nomadapi.NewBatchJob("fetched", "fetched", "global", 50)
		fetched.ParameterizedJob = &nomadapi.ParameterizedJobConfig{}
		task := nomadapi.NewTask("fetched", "raw_exec").SetConfig("command", "local/program")
		fetched.AddTaskGroup(nomadapi.NewTaskGroup("fetched", 1).AddTask(task))
		var want []string
		for _, version := range []string{"first", "second"} {
			source := "http://127.0.0.1:4700/" + version + "/program"
			task.Artifacts = []*nomadapi.TaskArtifact{{GetterSource: &source}}
			_, _, err := nomad.Jobs().Register(fetched, nil)
			require.NoError(t, err)
			want = append(want, "local/program", source)
		}
		programs, err := client.Programs(ctx)
		require.NoError(t, err)
		require.ElementsMatch(t, append(want, before...), programs, "those of both versions, which Nomad may go back to")
		require.NoError(t, client.Stop(ctx, "fetched", true))
	})

	t.Run("Access", func(t *testing.T) { testAccess(t, client, nomad, short.SecretID) })
}

// testAccess tries tokens and addresses that do not serve; short is a token that
// expires within a minute.
func testAccess(t *testing.T, client *jobs.Client, nomad *nomadapi.Client, short string) {
	require.NoError(t, client.Check(t.Context()))
	problem := func(t *testing.T, n *nomadapi.Client, c *consulapi.Client) *jobs.AccessError {
		t.Helper()
		var access *jobs.AccessError
		require.ErrorAs(t, jobs.New(n, c).Check(t.Context()), &access)
		return access
	}
	at := func(t *testing.T, address, token string) *nomadapi.Client {
		t.Helper()
		n, err := nomadapi.NewClient(&nomadapi.Config{Address: address, SecretID: token})
		require.NoError(t, err)
		return n
	}
	consul := func(t *testing.T, address, token string) *consulapi.Client {
		t.Helper()
		c, err := consulapi.NewClient(&consulapi.Config{Address: address, Token: token})
		require.NoError(t, err)
		return c
	}

	t.Run("WrongToken", func(t *testing.T) {
		err := problem(t, at(t, nomad.Address(), "01234567-89ab-cdef-0123-456789abcdef"), nil)
		require.Equal(t, jobs.Refused, err.Problem)
		require.ErrorContains(t, err, "Nomad at "+nomad.Address()+" refuses the token")
	})
	t.Run("TokenOfNoForm", func(t *testing.T) {
		require.Equal(t, jobs.Refused, problem(t, at(t, nomad.Address(), "x"), nil).Problem)
	})
	t.Run("SomebodyElse", func(t *testing.T) {
		other := httptest.NewServer(http.NotFoundHandler())
		defer other.Close()
		require.Equal(t, jobs.Unreachable, problem(t, at(t, other.URL, "x"), nil).Problem)
	})
	t.Run("WantsHTTPS", func(t *testing.T) {
		server := httptest.NewUnstartedServer(nil)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		defer server.Close()
		err := problem(t, at(t, "http"+strings.TrimPrefix(server.URL, "https"), "x"), nil)
		require.Equal(t, jobs.Unreachable, err.Problem)
		require.ErrorContains(t, err, "HTTPS server")
	})
	t.Run("NoToken", func(t *testing.T) {
		require.Equal(t, jobs.Refused, problem(t, at(t, nomad.Address(), ""), nil).Problem)
	})
	t.Run("ExpiredToken", func(t *testing.T) {
		expired := at(t, nomad.Address(), short)
		require.Eventually(t, func() bool {
			_, _, err := expired.ACLTokens().Self(nil)
			return err != nil
		}, 90*time.Second, 200*time.Millisecond)
		access := problem(t, expired, nil)
		require.Equal(t, jobs.Refused, access.Problem)
		require.ErrorContains(t, access, "expired")
	})
	t.Run("MayNot", func(t *testing.T) {
		_, err := nomad.ACLPolicies().Upsert(&nomadapi.ACLPolicy{Name: "look", Rules: `namespace "*" { policy = "read" }`}, nil)
		require.NoError(t, err)
		made, _, err := nomad.ACLTokens().Create(&nomadapi.ACLToken{Name: "look", Type: "client", Policies: []string{"look"}}, nil)
		require.NoError(t, err)
		looking := jobs.New(at(t, nomad.Address(), made.SecretID), nil)
		job, err := client.Load(t.Context(), probe(t, nil))
		require.NoError(t, err)
		_, err = looking.Plan(t.Context(), job)
		require.ErrorContains(t, err, "the Nomad token may not do this")
	})
	t.Run("NobodyThere", func(t *testing.T) {
		err := problem(t, at(t, "http://127.0.0.1:1", "x"), nil)
		require.Equal(t, jobs.Unreachable, err.Problem)
		require.ErrorContains(t, err, "Nomad at http://127.0.0.1:1 does not answer")
	})
	t.Run("WrongAuthority", func(t *testing.T) {
		server := httptest.NewUnstartedServer(nil)
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		server.StartTLS()
		defer server.Close()
		err := problem(t, at(t, server.URL, "x"), nil)
		require.Equal(t, jobs.Untrusted, err.Problem)
		require.ErrorAs(t, err, &x509.UnknownAuthorityError{})
	})
	t.Run("Consul", func(t *testing.T) {
		require.Equal(t, jobs.Unreachable, problem(t, nomad, consul(t, "127.0.0.1:1", "x")).Problem)
	})
}
