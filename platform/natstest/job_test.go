package natstest

import (
	"context"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	nomadapi "github.com/hashicorp/nomad/api"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"

	"github.com/marquee-ads/marquee/platform/cluster"
	"github.com/marquee-ads/marquee/platform/clustertest"
	"github.com/marquee-ads/marquee/platform/discovery"
	"github.com/marquee-ads/marquee/platform/jobs"
	"github.com/marquee-ads/marquee/platform/mesh"
	"github.com/marquee-ads/marquee/platform/release"
	"github.com/marquee-ads/marquee/platform/tools"
)

// TestJob runs nomad-jobs/nats.nomad.hcl on a cluster and knocks at it.
func TestJob(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a cluster; run without -short")
	}
	c := clustertest.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	users := nomadapi.NewVariable("nomad/jobs/nats")
	users.Items = nomadapi.VariableItems{"admin_password": `a+/"x=`, "order_password": "secret", "data": "kept"}
	users, _, err := c.Nomad().Variables().Create(users, nil)
	require.NoError(t, err)
	require.NoError(t, c.SetEdge(ctx, "order", "nats", true))
	deploy(ctx, t, c)

	found := discovery.New(c.Consul(), discovery.Options{})
	t.Cleanup(func() { require.NoError(t, found.Close()) })
	member := func(service string) mesh.Mesh {
		m, err := mesh.Native(ctx, mesh.NativeConfig{Consul: c.Consul(), Service: service, Environment: "development", Watcher: found})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, m.Close()) })
		return m
	}
	order, stranger := member("order"), member("stranger")

	t.Run("ThroughTheMesh", func(t *testing.T) {
		for user, password := range map[string]string{"order": "secret", "admin": `a+/"x=`} {
			conn, err := logIn(ctx, order, user, password)
			require.NoError(t, err, user)
			js, err := jetstream.New(conn)
			require.NoError(t, err)
			_, err = js.AccountInfo(ctx)
			require.NoError(t, err)
			conn.Close()
		}
	})
	t.Run("WrongPassword", func(t *testing.T) {
		for user, password := range map[string]string{"order": "wrong", "": "", "data": "kept"} {
			_, err := logIn(ctx, order, user, password)
			require.ErrorIs(t, err, nats.ErrAuthorization, user)
		}
	})
	t.Run("NoEdge", func(t *testing.T) {
		_, err := logIn(ctx, stranger, "order", "secret")
		require.Error(t, err)
		require.NotErrorIs(t, err, nats.ErrAuthorization, "it got as far as the server")
	})
	t.Run("OnLoopback", func(t *testing.T) {
		address := clientAddress(t, c)
		_, err := nats.Connect(address, nats.Timeout(5*time.Second))
		require.ErrorIs(t, err, nats.ErrAuthorization, "a process of the machine gets in without a password")
	})
	t.Run("AnotherUser", func(t *testing.T) {
		users.Items["play_out_password"] = "later"
		_, _, err := c.Nomad().Variables().Update(users, nil)
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			conn, err := logIn(ctx, order, "play-out", "later")
			if err == nil {
				conn.Close()
			}
			return err == nil
		}, time.Minute, 200*time.Millisecond)
	})
}

func deploy(ctx context.Context, t *testing.T, c *cluster.Cluster) {
	t.Helper()
	root, err := tools.Root()
	require.NoError(t, err)
	built, err := release.Build(ctx, "natsd", "meshproxyd")
	require.NoError(t, err)
	variables := map[string]string{
		"nats_binary": built["natsd"].Path, "proxy_binary": built["meshproxyd"].Path, "postgres_data_folder": c.Volumes(),
	}
	for _, v := range c.Env() {
		if v.Name == "CONSUL_HTTP_ADDR" {
			variables["consul_address"] = v.Value
		}
	}
	client := jobs.New(c.Nomad(), c.Consul())
	job, err := client.Load(ctx, jobs.File{Path: filepath.Join(root, "nomad-jobs", "nats.nomad.hcl"), Variables: variables})
	require.NoError(t, err)
	_, err = client.Deploy(ctx, job, func(jobs.Progress) {})
	require.NoError(t, err)
}

// throughMesh is how nats.go wants to be given a way to connect.
type throughMesh struct {
	ctx  context.Context
	mesh mesh.Mesh
}

func (d throughMesh) Dial(string, string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, 5*time.Second)
	defer cancel()
	return d.mesh.DialContext(ctx, "nats")
}

func logIn(ctx context.Context, m mesh.Mesh, user, password string) (*nats.Conn, error) {
	return nats.Connect("nats", nats.SkipHostLookup(), nats.SetCustomDialer(throughMesh{ctx, m}), nats.Timeout(5*time.Second), nats.UserInfo(user, password))
}

// clientAddress is where nats-server listens, as Nomad placed it.
func clientAddress(t *testing.T, c *cluster.Cluster) string {
	t.Helper()
	stubs, _, err := c.Nomad().Jobs().Allocations("nats", false, nil)
	require.NoError(t, err)
	require.Len(t, stubs, 1)
	alloc, _, err := c.Nomad().Allocations().Info(stubs[0].ID, nil)
	require.NoError(t, err)
	for _, port := range alloc.AllocatedResources.Shared.Ports {
		if port.Label == "client" {
			require.Equal(t, "127.0.0.1", port.HostIP)
			return net.JoinHostPort(port.HostIP, strconv.Itoa(port.Value))
		}
	}
	t.Fatal("the job has no port client")
	return ""
}
