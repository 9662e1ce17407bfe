package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	consulapi "github.com/hashicorp/consul/api"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/marquee-ads/marquee/e2e/load"
	"github.com/marquee-ads/marquee/e2e/scenario"
	accountv1 "github.com/marquee-ads/marquee/proto/gen/marquee/account/v1"
)

// The mesh's certificates change under load, and strangers stay outside.
func TestCertificates(t *testing.T) {
	t.Run("RootRotated", func(t *testing.T) {
		ctx := begin(t, 5*time.Minute)
		accounts := openDoors(t, ctx).Accounts()
		running := load.Start(ctx, accounts.Mixed(ctx, t))
		handshakes := newConnections(t, ctx)
		scenario.AtLeast(ctx, t, running, 200)

		consul := the.Cluster().Consul()
		before, _, err := consul.Agent().ConnectCARoots(nil)
		require.NoError(t, err)
		began := time.Now()
		_, err = consul.Connect().CASetConfig(&consulapi.CAConfig{Provider: "consul", Config: map[string]any{
			"PrivateKey": pemKey(t), "RootCert": "", "LeafCertTTL": "72h", "IntermediateCertTTL": "8760h",
		}}, nil)
		require.NoError(t, err)
		var root *x509.Certificate
		scenario.Eventually(ctx, t, 20*time.Second, "there is a new root", func() error {
			roots, _, err := consul.Agent().ConnectCARoots(nil)
			if err != nil {
				return err
			}
			for _, one := range roots.Roots {
				if one.Active && one.ID != before.ActiveRootID {
					root, err = parse(one.RootCertPEM)
					return err
				}
			}
			return errNotYet
		})
		// From here on the agent answers late, as on a machine that is busy.
		quick := slowAgent(t, ctx)
		// One that starts now has to wait for it with its first certificate.
		dead := kill(t, "gatewayd", 1)
		addresses := meshAddresses(t, ctx, "account", "account-db", "echo")
		took := scenario.Eventually(ctx, t, 3*time.Minute, "every instance has a certificate of the new root", func() error {
			for _, address := range addresses {
				leaf, err := leafOf(ctx, address)
				if err == nil {
					err = leaf.CheckSignatureFrom(root)
				}
				if err != nil {
					return fmt.Errorf("%s: %w", address, err)
				}
			}
			return nil
		})
		quick()
		recovery(t, ctx, "gateway", "gatewayd", 2, dead)
		t.Logf("all %d instances have certificates of the new root after %.1f s (%.1f s with a slow agent)", len(addresses), time.Since(began).Seconds(), took.Seconds())
		requireEven(t, ctx, running, 3)
		made, failed := handshakes()
		t.Logf("%d new connections made meanwhile", made)
		require.Positive(t, made)
		require.NoError(t, failed)
		requireUndisturbed(t, ctx, running, accounts)
	})
	t.Run("Strangers", func(t *testing.T) {
		ctx := begin(t, time.Minute)
		for _, address := range meshAddresses(t, ctx, "account") {
			for name, trustDomain := range map[string]string{
				"another trust domain":           "11111111-2222-3333-4444-555555555555.consul",
				"ours, of a CA that is not ours": trustDomain(t),
			} {
				creds := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{strangersCertificate(t, trustDomain)}})
				require.Error(t, scenario.Knock(ctx, address, creds), "a gateway of %s", name)
			}
		}
		// Of our CA, and of a service to which no edge leads.
		allowed, err := reachGRPC(ctx, as(t, "stranger"), "account")
		require.NoError(t, err)
		require.False(t, allowed)
		allowed, err = reachPostgres(ctx, as(t, "stranger"), "account-db")
		require.NoError(t, err)
		require.False(t, allowed)
		// The same way in for somebody to whom there is one.
		allowed, err = reachGRPC(ctx, as(t, "gateway"), "account")
		require.NoError(t, err)
		require.True(t, allowed)
	})
}

// newConnections makes a connection to account and a call on it, again and
// again, until the function it returns says how many were made and what failed.
func newConnections(t *testing.T, ctx context.Context) func() (int64, error) {
	t.Helper()
	m := as(t, "gateway")
	ctx, cancel := context.WithCancel(ctx)
	var (
		made    atomic.Int64
		failure error
		running sync.WaitGroup
	)
	running.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if failure = connectOnce(m.NewClient); failure != nil {
				return
			}
			made.Add(1)
			<-tick.C
		}
	})
	stop := func() (int64, error) {
		cancel()
		running.Wait()
		return made.Load(), failure
	}
	t.Cleanup(func() { _, _ = stop() })
	return stop
}

func connectOnce(dial func(string, ...grpc.DialOption) (*grpc.ClientConn, error)) error {
	conn, err := dial("account")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err = accountv1.NewAccountServiceClient(conn).GetSigningKeys(ctx, &accountv1.GetSigningKeysRequest{})
	return err
}

// slowAgent lets Consul's agent run a third of the time until the function it
// returns is called.
func slowAgent(t *testing.T, ctx context.Context) (quick func()) {
	t.Helper()
	pid := agentProcess(t, ctx, "consul")
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	running.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			signal := syscall.SIGSTOP
			if n%3 == 0 {
				signal = syscall.SIGCONT
			}
			_ = syscall.Kill(pid, signal)
			<-tick.C
		}
		_ = syscall.Kill(pid, syscall.SIGCONT)
	})
	quick = func() { cancel(); running.Wait() }
	t.Cleanup(quick)
	return quick
}

// meshAddresses are where the instances of services listen for the mesh.
func meshAddresses(t *testing.T, ctx context.Context, services ...string) []string {
	t.Helper()
	var addresses []string
	for _, service := range services {
		entries, _, err := the.Cluster().Consul().Health().Service(service, "", true, (&consulapi.QueryOptions{}).WithContext(ctx))
		require.NoError(t, err)
		require.NotEmpty(t, entries, service)
		for _, e := range entries {
			addresses = append(addresses, net.JoinHostPort(e.Service.Address, strconv.Itoa(e.Service.Port)))
		}
	}
	return addresses
}

// leafOf is the certificate that a mesh port shows to anybody who knocks.
func leafOf(ctx context.Context, address string) (leaf *x509.Certificate, err error) {
	errSeen := errors.New("seen")
	dialer := &tls.Dialer{Config: &tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{"h2"},
		VerifyConnection: func(state tls.ConnectionState) error {
			leaf = state.PeerCertificates[0]
			return errSeen
		},
	}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if conn != nil {
		conn.Close()
	}
	if leaf != nil {
		return leaf, nil
	}
	return nil, err
}

func parse(text string) (*x509.Certificate, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		return nil, errors.New("no PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}

func pemKey(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
}

func trustDomain(t *testing.T) string {
	t.Helper()
	roots, _, err := the.Cluster().Consul().Agent().ConnectCARoots(nil)
	require.NoError(t, err)
	return roots.TrustDomain
}

// strangersCertificate is the gateway's in a trust domain, of a CA of its own.
func strangersCertificate(t *testing.T, trustDomain string) tls.Certificate {
	t.Helper()
	ca := template(trustDomain)
	ca.SerialNumber, ca.URIs[0].Path = big.NewInt(2), ""
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, &caKey.PublicKey, caKey)
	require.NoError(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	leaf, err := x509.CreateCertificate(rand.Reader, template(trustDomain), ca, &key.PublicKey, caKey)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{leaf, root}, PrivateKey: key}
}
