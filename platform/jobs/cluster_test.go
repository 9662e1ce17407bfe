package jobs_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/clustertest"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/tools"
)

// TestMain lets this binary also be the process of the job in testdata.
func TestMain(m *testing.M) {
	switch os.Getenv("JOBS_TEST_PROBE") {
	case "":
		os.Exit(m.Run())
	case "crash":
		fmt.Println("the reason for the crash")
		os.Exit(7)
	default:
		fmt.Println("listening on", os.Getenv("JOBS_TEST_LISTEN"))
		server := &http.Server{
			Addr: os.Getenv("JOBS_TEST_LISTEN"), ReadHeaderTimeout: time.Second,
			Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		}
		fmt.Fprintln(os.Stderr, server.ListenAndServe())
		os.Exit(1)
	}
}

func probe(t *testing.T, variables map[string]string) jobs.File {
	t.Helper()
	binary, err := os.Executable()
	require.NoError(t, err)
	file := jobs.File{Path: "testdata/probe.nomad.hcl", Variables: map[string]string{"binary": binary}}
	for name, value := range variables {
		file.Variables[name] = value
	}
	return file
}

// TestOnCluster runs what needs a cluster on one.
func TestOnCluster(t *testing.T) {
	c := clustertest.Start(t)
	client := jobs.New(c.Nomad(), c.Consul())
	t.Run("JobFiles", func(t *testing.T) { testJobFiles(t, client, c.Volumes()) })
	t.Run("Lifecycle", func(t *testing.T) { testLifecycle(t, client) })
	t.Run("Operate", func(t *testing.T) { testOperate(t, client, c.Nomad()) })
}

// demoFile is the job that is not in the mesh, and runs on no machines.
const demoFile = "players.nomad.hcl"

// testJobFiles has Nomad validate and plan every job file there is, with its
// defaults and with the variables file, and finds a place for all of it.
func testJobFiles(t *testing.T, client *jobs.Client, volumes string) {
	root, err := tools.Root()
	require.NoError(t, err)
	files, err := filepath.Glob(filepath.Join(root, "nomad-jobs", "*.nomad.hcl"))
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 3)
	variables := map[string]string{
		"proxy_binary": "/releases/0123456789ab/meshproxyd", "postgres_bin_dir": "/postgres/bin", "postgres_data_folder": volumes,
	}
	for variable, program := range programs(files) {
		variables[variable+"_binary"] = "/releases/0123456789ab/" + program
	}
	ids := map[string]string{"account.nomad.hcl": "account", "gateway.nomad.hcl": "gateway", "postgres.nomad.hcl": "account-db"}
	for _, path := range files {
		name := filepath.Base(path)
		t.Run(name, func(t *testing.T) {
			for _, extra := range [][]string{nil, {filepath.Join(root, "nomad-jobs", "vars", "local.hcl")}} {
				job, err := client.Load(t.Context(), jobs.File{Path: path, Variables: variables, VariableFiles: extra})
				require.NoError(t, err)
				if id := ids[name]; id != "" {
					require.Equal(t, id, job.ID())
				}
				plan, err := client.Plan(t.Context(), job)
				require.NoError(t, err)
				require.True(t, plan.Changed)
				require.Empty(t, plan.Unplaceable)
				require.Empty(t, plan.Warnings)
				for _, group := range job.Spec.TaskGroups {
					for _, service := range group.Services {
						require.Contains(t, service.Tags, "env-development")
						require.Equal(t, "0123456789ab", service.Meta["version"])
						if name == demoFile {
							require.Nil(t, service.Connect)
							continue
						}
						require.NotNil(t, service.Connect)
						require.True(t, service.Connect.Native)
					}
					for _, task := range group.Tasks {
						require.Greater(t, *task.KillTimeout, 10*time.Second, "shorter than the drain")
					}
				}
			}
		})
	}

	// Nothing here could place it, because it needs bridge mode: Load has Nomad
	// validate it.
	t.Run("sidecar/account.nomad.hcl", func(t *testing.T) {
		values := maps.Clone(variables)
		values["envoy_binary"] = "/usr/local/bin/envoy"
		path := filepath.Join(root, "nomad-jobs", "sidecar", "account.nomad.hcl")
		job, err := client.Load(t.Context(), jobs.File{Path: path, Variables: values})
		require.NoError(t, err)
		require.Equal(t, "account", job.ID())
		require.Len(t, job.Spec.TaskGroups, 1)
		group := job.Spec.TaskGroups[0]
		require.Len(t, group.Services, 1)
		require.Contains(t, group.Services[0].Tags, "env-development")
		require.Equal(t, "0123456789ab", group.Services[0].Meta["version"])
		require.NotNil(t, group.Services[0].Connect.SidecarService)
		for _, task := range group.Tasks {
			require.Greater(t, *task.KillTimeout, 13*time.Second, "shorter than the drain and the rest of a stop")
		}
		values["envoy_binary"] = "envoy"
		_, err = client.Load(t.Context(), jobs.File{Path: path, Variables: values})
		require.ErrorContains(t, err, "envoy_binary must be an absolute path")
	})

	for _, c := range []struct{ file, variable, value, err string }{
		{"account.nomad.hcl", "account_count", "0", "account_count must be a whole number"},
		{"account.nomad.hcl", "account_count", "1.5", "account_count must be a whole number"},
		{"account.nomad.hcl", "account_binary", "accountd", "account_binary must be an absolute path"},
		{"account.nomad.hcl", "account_artifact", "http://127.0.0.1:4700/0123/accountd", "account_artifact must be a URL"},
		{"account.nomad.hcl", "account_image", "accountd", "account_image must end in a tag"},
		{"account.nomad.hcl", "consul_ca_file", "ca.pem", "consul_ca_file must be an absolute path"},
		{"gateway.nomad.hcl", "gateway_http_port", "80800", "gateway_http_port must be a port"},
		{"account.nomad.hcl", "account_min", "4", "less than"},
		{"account.nomad.hcl", "environment", "Production!", "environment must be"},
		{"account.nomad.hcl", "mode", "prod", "mode must be"},
		{"account.nomad.hcl", "log_level", "loud", "log_level must be"},
		{"gateway.nomad.hcl", "driver", "java", "driver must be"},
		{"gateway.nomad.hcl", "gateway_memory", "1", "gateway_memory must be"},
		{"postgres.nomad.hcl", "name", "account", "followed by -db"},
		{"postgres.nomad.hcl", "postgres_data_folder", "data", "postgres_data_folder must be an absolute path"},
	} {
		t.Run(c.file+"/refuses/"+c.variable+"="+c.value, func(t *testing.T) {
			wrong := maps.Clone(variables)
			wrong[c.variable] = c.value
			_, err := client.Load(t.Context(), jobs.File{Path: filepath.Join(root, "nomad-jobs", c.file), Variables: wrong})
			require.ErrorContains(t, err, c.err)
		})
	}

	t.Run("Production", func(t *testing.T) { testProduction(t, client, root, files) })

	t.Run("NothingToRun", func(t *testing.T) {
		for _, name := range []string{"account", "gateway", "postgres", "nats"} {
			_, err := client.Load(t.Context(), jobs.File{
				Path: filepath.Join(root, "nomad-jobs", name+".nomad.hcl"), Variables: map[string]string{"postgres_bin_dir": "/x", "postgres_data_folder": "/x"},
			})
			require.ErrorContains(t, err, "source must be specified", name)
		}
	})

	t.Run("AnotherDatabase", func(t *testing.T) {
		values := maps.Clone(variables)
		values["name"], values["postgres_host_volumes"] = "order-db", "true"
		job, err := client.Load(t.Context(), jobs.File{Path: filepath.Join(root, "nomad-jobs", "postgres.nomad.hcl"), Variables: values})
		require.NoError(t, err)
		require.Equal(t, "order-db", job.ID())
		plan, err := client.Plan(t.Context(), job)
		require.NoError(t, err)
		require.Len(t, plan.Unplaceable, 1, "no machine here offers the volume")
		require.Contains(t, plan.Unplaceable[0], "missing compatible host volumes")
	})
}

// programs are what the job files run, by the beginning of the variables that take
// it: a service that is new runs what its name says.
func programs(files []string) map[string]string {
	found := map[string]string{}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".nomad.hcl")
		found[strings.ReplaceAll(name, "-", "_")] = name + "d"
	}
	return found
}

// testProduction has Nomad validate every job file with the values for machines,
// with the exec driver and artifacts and with Docker and images.
func testProduction(t *testing.T, client *jobs.Client, root string, files []string) {
	sum := strings.Repeat("0123456789abcdef", 4)
	at := func(program string) string { return "http://127.0.0.1:4700/" + sum + "/" + program }
	variables := map[string]string{
		"proxy_artifact": at("meshproxyd"),
		// What a shell on a laptop may have set counts for nothing here.
		"account_binary": "/releases/fedcba987654/accountd",
	}
	for variable, program := range programs(files) {
		variables[variable+"_artifact"] = at(program)
		variables[variable+"_image"] = "registry.example.com/" + program + ":0123456789ab"
	}
	load := func(t *testing.T, path string, more map[string]string) *nomadapi.Job {
		t.Helper()
		values := maps.Clone(variables)
		maps.Copy(values, more)
		job, err := client.Load(t.Context(), jobs.File{Path: path, Variables: values, VariableFiles: []string{filepath.Join(root, "nomad-jobs", "vars", "production.hcl")}})
		require.NoError(t, err)
		plan, err := client.Plan(t.Context(), job)
		require.NoError(t, err)
		require.Len(t, plan.Unplaceable, 1, "this machine is none of production's")
		return job.Spec
	}
	pools := map[string]string{"account": "services", "gateway": "edge", "account-db": "data", "nats": "data"}
	// The database before what others need, that before the rest.
	priorities := map[string]int{"account-db": 90, "nats": 85, "gateway": 80, "account": 70}
	for _, path := range files {
		if filepath.Base(path) == demoFile {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			job := load(t, path, nil)
			require.Equal(t, "all", *job.NodePool)
			require.Equal(t, "true", job.Meta[jobs.ManagedMeta])
			if pool := pools[*job.ID]; pool != "" {
				require.Equal(t, "${meta.marquee_"+pool+"}", job.Constraints[0].LTarget)
			}
			if priority := priorities[*job.ID]; priority != 0 {
				require.Equal(t, priority, *job.Priority)
			}
			group := job.TaskGroups[0]
			require.Equal(t, "0123456789ab", group.Services[0].Meta["version"])
			require.Equal(t, 5*time.Second, *group.ReschedulePolicy.Delay)
			require.Equal(t, 1, *group.Migrate.MaxParallel, "a drain takes one at a time")
			require.Equal(t, "checks", *group.Migrate.HealthCheck, "and waits until another is healthy")
			for _, task := range group.Tasks {
				require.Equal(t, "exec", task.Driver)
				require.Equal(t, "nobody", task.User)
				require.Len(t, task.Artifacts, 1)
				require.Equal(t, "sha256:"+sum, task.Artifacts[0].GetterOptions["checksum"])
				require.Equal(t, "local/"+task.Name, *task.Artifacts[0].RelativeDest)
				require.Equal(t, "local/"+task.Name, task.Config["command"])
				if task.Name != "postgresd" {
					require.Equal(t, "/etc/marquee/tls/ca.pem", task.Env["CONSUL_CACERT"])
				}
				for _, template := range task.Templates {
					if *template.Perms == "0400" {
						require.Equal(t, 65534, *template.Uid, "the task could not read it")
					}
				}
			}
		})
	}

	t.Run("GatewayPorts", func(t *testing.T) {
		job := load(t, filepath.Join(root, "nomad-jobs", "gateway.nomad.hcl"), nil)
		network := job.TaskGroups[0].Networks[0]
		require.Equal(t, []nomadapi.Port{
			{Label: "http", Value: 8080, HostNetwork: "public"}, {Label: "grpc", Value: 8081, HostNetwork: "public"},
		}, network.ReservedPorts)
		require.Zero(t, *job.Update.Canary, "a canary would find no free port")
	})

	for name, c := range map[string]struct {
		file  string
		tasks []string // that have the data
	}{
		"account-db": {"postgres", []string{"postgresd", "meshproxyd"}}, // whose socket is there
		"nats":       {"nats", []string{"natsd"}},
	} {
		t.Run(name+" waits for its data", func(t *testing.T) {
			job := load(t, filepath.Join(root, "nomad-jobs", c.file+".nomad.hcl"), nil)
			group := job.TaskGroups[0]
			require.Equal(t, name+"-data", group.Volumes["data"].Source)
			require.False(t, *group.Disconnect.Replace)
			var have []string
			for _, task := range group.Tasks {
				for _, mount := range task.VolumeMounts {
					require.Equal(t, "/var/lib/marquee/volumes/"+name, *mount.Destination)
					have = append(have, task.Name)
				}
			}
			require.ElementsMatch(t, c.tasks, have)
		})
	}

	t.Run("Docker", func(t *testing.T) {
		for _, name := range []string{"account", "gateway"} {
			job := load(t, filepath.Join(root, "nomad-jobs", name+".nomad.hcl"), map[string]string{"driver": "docker"})
			task := job.TaskGroups[0].Tasks[0]
			require.Equal(t, "docker", task.Driver)
			require.Equal(t, "registry.example.com/"+name+"d:0123456789ab", task.Config["image"])
			require.Equal(t, true, task.Config["readonly_rootfs"])
			require.Empty(t, task.Artifacts)
			require.NotContains(t, task.Config, "command")
			require.Equal(t, "0123456789ab", job.TaskGroups[0].Services[0].Meta["version"])
		}
	})

	t.Run("Distinct", func(t *testing.T) {
		job := load(t, filepath.Join(root, "nomad-jobs", "account.nomad.hcl"), map[string]string{"distinct_hosts": "true"})
		require.Equal(t, "distinct_hosts", job.Constraints[1].Operand)
	})
}

// testLifecycle takes one job through everything that can happen to it: each
// step starts from what the one before left.
func testLifecycle(t *testing.T, client *jobs.Client) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	load := func(t *testing.T, variables map[string]string) *jobs.Job {
		t.Helper()
		job, err := client.Load(ctx, probe(t, variables))
		require.NoError(t, err)
		return job
	}

	t.Run("LoadRefuses", func(t *testing.T) {
		_, err := client.Load(ctx, jobs.File{Path: "testdata/probe.nomad.hcl"})
		require.ErrorContains(t, err, "binary")
		require.ErrorContains(t, err, "testdata/probe.nomad.hcl")
		_, err = client.Load(ctx, probe(t, map[string]string{"probe_count": `"many"`}))
		require.ErrorContains(t, err, "probe_count")
	})

	t.Run("Unknown", func(t *testing.T) {
		_, err := client.Service(ctx, "probe")
		require.ErrorContains(t, err, `there is no service "probe"`)
		require.NoError(t, client.Stop(ctx, "probe", true))
		require.Error(t, client.Restart(ctx, "probe", nil))
	})

	t.Run("Deploy", func(t *testing.T) {
		job := load(t, nil)
		plan, err := client.Plan(ctx, job)
		require.NoError(t, err)
		require.True(t, plan.Changed)
		require.Equal(t, []string{"the job is new"}, plan.Changes)
		require.Empty(t, plan.Unplaceable)

		var seen []jobs.Progress
		deployed, err := client.Deploy(ctx, job, func(p jobs.Progress) { seen = append(seen, p) })
		require.NoError(t, err)
		require.False(t, deployed.Unchanged)
		require.Equal(t, jobs.Progress{Job: "probe", Healthy: 2, Desired: 2, Message: "healthy"}, seen[len(seen)-1])

		service, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.True(t, service.Ready())
		require.Len(t, service.Instances, 2)
		for _, i := range service.Instances {
			require.Equal(t, "passing", i.Health)
			require.Equal(t, "running", i.State)
			require.Equal(t, "healthy", i.Release)
			require.Contains(t, i.Address, "127.0.0.1:")
			require.Contains(t, i.ID, i.AllocID)
		}
		all, err := client.Status(ctx)
		require.NoError(t, err)
		require.Len(t, all, 1)
	})

	t.Run("Unchanged", func(t *testing.T) {
		before, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		deployed, err := client.Deploy(ctx, load(t, nil), nil)
		require.NoError(t, err)
		require.True(t, deployed.Unchanged)
		after, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.Equal(t, before, after)
	})

	t.Run("Logs", func(t *testing.T) {
		var text bytes.Buffer
		require.NoError(t, client.Logs(ctx, "probe", jobs.LogOptions{Lines: 5}, &text))
		service, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		for _, i := range service.Instances {
			require.Contains(t, text.String(), jobs.Short(i.AllocID)+" probe | listening on "+i.Address+"\n")
		}
		require.ErrorContains(t, client.Logs(ctx, "none", jobs.LogOptions{}, &text), `"none"`)
	})

	t.Run("RestartReplacesOneByOne", func(t *testing.T) {
		before, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		following, stop := context.WithCancel(ctx)
		text := &buffer{}
		followed := make(chan error, 1)
		go func() { followed <- client.Logs(following, "probe", jobs.LogOptions{Follow: true}, text) }()

		require.NoError(t, client.Restart(ctx, "probe", nil))
		after, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.True(t, after.Ready())
		for _, i := range before.Instances {
			_, still := after.Instance(i.AllocID)
			require.False(t, still)
		}
		// Following shows the instances that came later as well.
		for _, i := range after.Instances {
			require.Eventually(t, func() bool {
				return strings.Contains(text.String(), jobs.Short(i.AllocID)+" probe | listening on "+i.Address)
			}, 10*time.Second, 50*time.Millisecond)
		}
		stop()
		require.NoError(t, <-followed)
		for _, i := range after.Instances {
			require.Equal(t, 1, strings.Count(text.String(), jobs.Short(i.AllocID)+" probe | listening on "), text.String())
		}
		for _, i := range before.Instances {
			require.NotContains(t, text.String(), jobs.Short(i.AllocID)+" probe | listening on ", "it is from before")
		}
	})

	t.Run("BrokenVersionIsReverted", func(t *testing.T) {
		before, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		job := load(t, map[string]string{"behaviour": "crash"})
		plan, err := client.Plan(ctx, job)
		require.NoError(t, err)
		require.Contains(t, strings.Join(plan.Changes, "\n"), `JOBS_TEST_PROBE] "healthy" -> "crash"`)
		_, err = client.Deploy(ctx, job, nil)
		var failed *jobs.FailedError
		require.ErrorAs(t, err, &failed)
		require.True(t, failed.Reverted, failed.Reason)
		require.Contains(t, failed.Evidence, "the reason for the crash")
		require.Contains(t, failed.Evidence, "Exit Code: 7")

		service, err := client.WaitReady(ctx, "probe")
		require.NoError(t, err)
		require.Equal(t, 2, service.Healthy)
		for _, i := range before.Instances {
			_, still := service.Instance(i.AllocID)
			require.True(t, still, "a canary that fails must not cost a running instance")
		}
	})

	t.Run("Unplaceable", func(t *testing.T) {
		job := load(t, map[string]string{"memory": "90000000"})
		plan, err := client.Plan(ctx, job)
		require.NoError(t, err)
		require.Len(t, plan.Unplaceable, 1)
		require.Contains(t, plan.Unplaceable[0], "memory exhausted")
		_, err = client.Deploy(ctx, job, nil)
		var failed *jobs.FailedError
		require.ErrorAs(t, err, &failed)
		require.Contains(t, failed.Reason, "memory exhausted")
	})

	t.Run("Fewer", func(t *testing.T) {
		_, err := client.Deploy(ctx, load(t, map[string]string{"probe_count": "1"}), nil)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			service, err := client.Service(ctx, "probe")
			return err == nil && service.Desired == 1 && service.Healthy == 1
		}, 20*time.Second, 100*time.Millisecond)
	})

	t.Run("Stop", func(t *testing.T) {
		service, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.NoError(t, client.Stop(ctx, "probe", true))
		for _, i := range service.Instances {
			_, err := net.DialTimeout("tcp", i.Address, time.Second)
			require.ErrorContains(t, err, "refused", "the process must have ended")
		}
		require.Eventually(t, func() bool {
			_, err := client.Service(ctx, "probe")
			return err != nil
		}, 20*time.Second, 100*time.Millisecond)
	})

	t.Run("FailedFirstVersionIsTriedAgain", func(t *testing.T) {
		job := load(t, map[string]string{"behaviour": "crash", "probe_count": "1"})
		_, err := client.Deploy(ctx, job, nil)
		var failed *jobs.FailedError
		require.ErrorAs(t, err, &failed)
		require.False(t, failed.Reverted)
		first, err := client.Service(ctx, "probe")
		require.NoError(t, err)

		deployed, err := client.Deploy(ctx, job, nil)
		require.ErrorAs(t, err, &failed)
		require.False(t, deployed.Unchanged)
		require.Contains(t, failed.Evidence, "the reason for the crash")
		second, err := client.Service(ctx, "probe")
		require.NoError(t, err)
		require.NotEqual(t, first.Instances[0].AllocID, second.Instances[0].AllocID, "a new allocation tries again")
		require.NoError(t, client.Stop(ctx, "probe", true))
	})
}

// buffer is a bytes.Buffer for a writer and a reader at once.
type buffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
