package natstest

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/stretchr/testify/require"
)

func open(t *testing.T, s *Server) jetstream.JetStream {
	t.Helper()
	conn, err := nats.Connect(s.Address)
	require.NoError(t, err)
	t.Cleanup(conn.Close)
	js, err := jetstream.New(conn)
	require.NoError(t, err)
	return js
}

func TestKillAndRestart(t *testing.T) {
	s := Start(t)
	_, err := open(t, s).CreateStream(t.Context(), jetstream.StreamConfig{Name: "KEPT", Subjects: []string{"kept"}})
	require.NoError(t, err)
	_, err = open(t, s).Publish(t.Context(), "kept", []byte("one"))
	require.NoError(t, err)
	s.Kill()
	_, err = nats.Connect(s.Address, nats.Timeout(time.Second))
	require.Error(t, err, "it is gone")
	s.Restart()
	stream, err := open(t, s).Stream(t.Context(), "KEPT")
	require.NoError(t, err)
	require.Equal(t, uint64(1), stream.CachedInfo().State.Msgs)
}

func TestCluster(t *testing.T) {
	servers := Cluster(t, 3)
	stream, err := open(t, servers[0]).CreateStream(t.Context(), jetstream.StreamConfig{Name: "KEPT", Subjects: []string{"kept"}, Replicas: 3})
	require.NoError(t, err)
	require.Len(t, stream.CachedInfo().Cluster.Replicas, 2)
}
