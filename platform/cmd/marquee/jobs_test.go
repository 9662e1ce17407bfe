package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	nomad "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/tools"
)

// TestMain lets this binary also be the process of the jobs package's test job.
func TestMain(m *testing.M) {
	if os.Getenv("JOBS_TEST_PROBE") == "" {
		os.Exit(m.Run())
	}
	server := &http.Server{
		Addr: os.Getenv("JOBS_TEST_LISTEN"), ReadHeaderTimeout: time.Second,
		Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
	}
	fmt.Println("listening on", server.Addr)
	fmt.Fprintln(os.Stderr, server.ListenAndServe())
	os.Exit(1)
}

// marquee runs one command line and returns what it printed.
func marquee(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, problems bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	code = run(ctx, args, strings.NewReader(stdin), &out, &problems)
	return code, out.String(), problems.String()
}

// emptyCheckout is a checkout without any service, and the tools of this one; it
// is the one that commands work on.
func emptyCheckout(t *testing.T) string {
	t.Helper()
	here, err := tools.Root()
	require.NoError(t, err)
	// Not t.TempDir: a cluster's folder wants a short path.
	root, err := os.MkdirTemp("", "mq")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(root)) })
	for _, folder := range []string{".marquee", "nomad-jobs/vars"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, folder), 0o755))
	}
	for _, file := range []string{"go.work", "nomad-jobs/services.hcl", "nomad-jobs/edges.hcl", "nomad-jobs/vars/local.hcl"} {
		require.NoError(t, os.WriteFile(filepath.Join(root, file), nil, 0o600))
	}
	for _, folder := range []string{"tools", ".marquee/tools"} {
		require.NoError(t, os.Symlink(filepath.Join(here, folder), filepath.Join(root, folder)))
	}
	t.Setenv("MARQUEE_ROOT", root)
	return root
}

// TestJobs works on a real cluster that only the environment names.
func TestJobs(t *testing.T) {
	root := emptyCheckout(t)
	c, err := cluster.Open(cluster.Config{Dir: cluster.Folder(root, "test")})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		require.NoError(t, c.Wipe(ctx))
	})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	require.NoError(t, c.Up(ctx))
	for _, v := range c.Env() {
		t.Setenv(v.Name, v.Value)
	}
	code, stdout, _ := marquee(t, "", "jobs", "list")
	require.Zero(t, code)
	require.Contains(t, stdout, "nothing runs on "+c.Nomad().Address())

	self, err := os.Executable()
	require.NoError(t, err)
	client := jobs.New(c.Nomad(), c.Consul())
	job, err := client.Load(ctx, jobs.File{Path: "../../jobs/testdata/probe.nomad.hcl", Variables: map[string]string{"binary": self, "probe_count": "1"}})
	require.NoError(t, err)
	_, err = client.Deploy(ctx, job, nil)
	require.NoError(t, err)

	t.Run("List", func(t *testing.T) {
		code, stdout, _ := marquee(t, "", "jobs", "list", "--json")
		require.Zero(t, code)
		var services []jobs.Service
		require.NoError(t, json.Unmarshal([]byte(stdout), &services))
		require.Len(t, services, 1)
		require.Equal(t, "probe", services[0].Name)
		code, stdout, _ = marquee(t, "", "jobs", "list", "--usage")
		require.Zero(t, code)
		require.Contains(t, stdout, "MEMORY MiB")
	})
	t.Run("Exec", func(t *testing.T) {
		code, stdout, stderr := marquee(t, "typed\n", "jobs", "exec", "probe", "--", "/bin/sh", "-c", "cat; echo problem >&2; exit 42")
		require.Equal(t, 42, code)
		require.Equal(t, "typed\n", stdout)
		require.Contains(t, stderr, "problem")
	})
	t.Run("Scale", func(t *testing.T) {
		code, stdout, stderr := marquee(t, "", "jobs", "scale", "probe", "2")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "probe runs 2 instances")
		require.Contains(t, stderr, "scaling from 1 to 2")
		code, _, stderr = marquee(t, "", "jobs", "scale", "probe", "9")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, "no more than 3")
	})
	t.Run("Config", func(t *testing.T) {
		code, stdout, _ := marquee(t, "", "jobs", "config", "probe")
		require.Zero(t, code)
		require.Contains(t, stdout, "group probe: 2 instances (marquee jobs scale: 1 to 3)")
		require.Regexp(t, `probe_count +given +1\n`, stdout)
		code, stdout, _ = marquee(t, "", "jobs", "config", "probe", "--json")
		require.Zero(t, code)
		var effective jobs.Effective
		require.NoError(t, json.Unmarshal([]byte(stdout), &effective))
		require.Equal(t, "probe", *effective.Spec.ID)
	})
	t.Run("Logs", func(t *testing.T) {
		code, stdout, _ := marquee(t, "", "jobs", "logs", "probe", "-n", "1")
		require.Zero(t, code)
		require.Contains(t, stdout, "listening on 127.0.0.1:")
	})
	t.Run("Nodes", func(t *testing.T) {
		code, _, stderr := marquee(t, "", "nodes", "meta", c.Name(), "marquee_edge=true")
		require.Zero(t, code, stderr)
		code, stdout, _ := marquee(t, "", "nodes", "list")
		require.Zero(t, code)
		require.Contains(t, stdout, "marquee_edge=true")
		code, _, stderr = marquee(t, "", "nodes", "meta", c.Name(), "marquee_edge")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, "want key=value, or key= to remove it")
		code, _, _ = marquee(t, "", "nodes", "eligibility", c.Name(), "off")
		require.Zero(t, code)
		_, stdout, _ = marquee(t, "", "nodes", "list", "--json")
		require.Contains(t, stdout, `"eligible": false`)
		code, _, _ = marquee(t, "", "nodes", "eligibility", c.Name(), "on")
		require.Zero(t, code)
	})
	t.Run("DeployNeedsMore", func(t *testing.T) {
		code, _, stderr := marquee(t, "", "--cluster", "other", "jobs", "deploy")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, "name the environment with --env")
	})
	t.Run("DeployNamesOrphans", func(t *testing.T) {
		code, stdout, stderr := marquee(t, "", "jobs", "deploy")
		require.Zero(t, code, stderr)
		require.Contains(t, stdout, "probe still runs, and nomad-jobs/ has it no more: --prune (make deploy PRUNE=1) stops it")
		service, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.Equal(t, 2, service.Healthy)
	})
	t.Run("Stop", func(t *testing.T) {
		for _, answer := range []string{"", "\n", "no\n"} {
			code, _, stderr := marquee(t, answer, "jobs", "stop", "probe")
			require.Equal(t, exitFailed, code)
			require.Contains(t, stderr, "Stop probe, 2 healthy instances")
			require.Contains(t, stderr, "probe was not stopped")
		}
		code, stdout, _ := marquee(t, "y\n", "jobs", "stop", "probe")
		require.Zero(t, code)
		require.Contains(t, stdout, "probe is stopped")
		service, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.Zero(t, service.Desired)
		code, _, stderr := marquee(t, "", "jobs", "stop", "nothing", "--yes")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, `there is no job "nothing"; there are probe`)
	})
	t.Run("DeployPrunes", func(t *testing.T) {
		_, err = client.Deploy(ctx, job, nil)
		require.NoError(t, err)
		code, stdout, stderr := marquee(t, "", "jobs", "deploy", "--prune", "--json")
		require.Zero(t, code, stderr)
		require.Contains(t, stderr, "probe: stopping, because nomad-jobs/ has it no more")
		var result deployResult
		require.NoError(t, json.Unmarshal([]byte(stdout), &result))
		require.Equal(t, []string{"probe"}, result.Orphans)
		require.True(t, result.Pruned)
		service, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.Zero(t, service.Desired)
	})
	t.Run("WrongToken", func(t *testing.T) {
		t.Setenv("NOMAD_TOKEN", "01234567-89ab-cdef-0123-456789abcdef")
		code, _, stderr := marquee(t, "", "jobs", "list")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, "refuses the token")
		require.Contains(t, stderr, "set NOMAD_TOKEN to a token that the cluster knows")
	})
	t.Run("WrongConsulToken", func(t *testing.T) {
		t.Setenv("CONSUL_HTTP_TOKEN", "01234567-89ab-cdef-0123-456789abcdef")
		code, _, stderr := marquee(t, "", "jobs", "list")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, "Consul refuses the token")
		require.Contains(t, stderr, "set CONSUL_HTTP_TOKEN")
	})
	t.Run("NobodyThere", func(t *testing.T) {
		t.Setenv("NOMAD_ADDR", "http://127.0.0.1:1")
		code, _, stderr := marquee(t, "", "nodes", "list")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, "Nomad at http://127.0.0.1:1 does not answer")
		require.Contains(t, stderr, "set NOMAD_ADDR to where it is")
	})
	t.Run("NoEnvironment", func(t *testing.T) {
		code, _, stderr := marquee(t, "", "jobs", "list", "--env", "never-made")
		require.Equal(t, exitFailed, code)
		require.Contains(t, stderr, "never-made")
	})
}

func TestPrintUsage(t *testing.T) {
	var text bytes.Buffer
	require.NoError(t, printUsage(&text, map[string][]jobs.Usage{"account": {
		{AllocID: allocA, Node: "client-1", Task: "accountd", CPU: 12.6, GivenCPU: 100, Memory: 40 << 20, GivenMemory: 128 << 20},
		{AllocID: allocA, Node: "client-1", Task: "other", CPU: 1, GivenCPU: 20, Memory: 1 << 20, MostMemory: 2 << 20, GivenMemory: 64 << 20},
	}}))
	require.Equal(t, `JOB      INSTANCE  TASK      NODE      CPU MHz  OF   MEMORY MiB  MOST  OF
account  0a1b2c3d  accountd  client-1  13       100  40          -     128
account  0a1b2c3d  other     client-1  1        20   1           2     64
`, text.String())
}

func TestPrintDeployed(t *testing.T) {
	var text bytes.Buffer
	result := deployResult{Deployed: []deployedJob{{"account", false, 3}, {"gateway", true, 1}}, Orphans: []string{"old"}, Seconds: 1.25}
	require.NoError(t, printDeployed(&text, result))
	result.Pruned, result.Deployed = true, nil
	require.NoError(t, printDeployed(&text, result))
	require.Equal(t, `account is deployed (version 3)
gateway ran this already (version 1)
old still runs, and nomad-jobs/ has it no more: --prune (make deploy PRUNE=1) stops it
done after 1.2 s
old was stopped: nomad-jobs/ has it no more
done after 1.2 s
`, text.String())
}

func TestPrintNodes(t *testing.T) {
	var text bytes.Buffer
	require.NoError(t, printNodes(&text, []jobs.Node{
		{
			ID: allocA, Name: "client-1", Address: "10.77.0.101", Pool: "default", Status: nomad.NodeStatusReady, Eligible: true,
			Meta: map[string]string{"marquee_edge": "true", "a": "b"}, Instances: []string{"account/1"},
		},
		{ID: allocA, Name: "client-2", Address: "10.77.0.102", Pool: "default", Status: nomad.NodeStatusReady, Draining: true},
	}))
	require.Equal(t, `MACHINE   ID        ADDRESS      POOL     STATUS  TAKES INSTANCES  RUNS  METADATA
client-1  0a1b2c3d  10.77.0.101  default  ready   yes              1     a=b marquee_edge=true
client-2  0a1b2c3d  10.77.0.102  default  ready   no, draining     0     
`, text.String())
}
