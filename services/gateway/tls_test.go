package gateway_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	echov1 "github.com/marquee-ads/marquee/proto/gen/marquee/echo/v1"
	"github.com/marquee-ads/marquee/services/gateway"
)

func TestDoorsWithTLS(t *testing.T) {
	// The certificate that httptest makes for 127.0.0.1.
	model := httptest.NewTLSServer(http.NotFoundHandler())
	model.Close()
	pair := model.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	require.NoError(t, err)
	certFile, keyFile := filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	gw := startOne(t, startEcho(t), func(c *gateway.Config) { c.TLSCertFile, c.TLSKeyFile = certFile, keyFile })

	roots := x509.NewCertPool()
	roots.AddCert(model.Certificate())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	response, err := client.Get("https://" + gw.HTTPAddr().String() + "/v1/echo/x")
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, 2, response.ProtoMajor)

	conn, err := grpc.NewClient(gw.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})))
	require.NoError(t, err)
	defer conn.Close()
	_, err = echov1.NewEchoServiceClient(conn).Echo(t.Context(), &echov1.EchoRequest{Text: "x"})
	require.NoError(t, err)
}

func TestUnreadableCertificateIsRefused(t *testing.T) {
	cfg := defaults()
	cfg.TLSCertFile, cfg.TLSKeyFile = "/does/not/exist", "/does/not/exist"
	require.NoError(t, cfg.Validate())
	_, err := gateway.New(cfg, surroundings(t, newRegistry()))
	require.ErrorContains(t, err, "--tls-cert-file")
}

func TestProductionNeedsTLS(t *testing.T) {
	open := gateway.Config{HTTPListen: "0.0.0.0:80", GRPCListen: "[::]:81"}
	err := open.ValidateProduction()
	require.ErrorContains(t, err, "--http-listen: 0.0.0.0:80 is not on loopback")
	require.ErrorContains(t, err, "--grpc-listen")
	for name, cfg := range map[string]gateway.Config{
		"Loopback":  {HTTPListen: "127.0.0.1:80", GRPCListen: "localhost:81"},
		"OwnTLS":    {HTTPListen: ":80", GRPCListen: ":81", TLSCertFile: "cert.pem", TLSKeyFile: "key.pem"},
		"BehindTLS": {HTTPListen: ":80", GRPCListen: ":81", BehindTLS: true},
	} {
		t.Run(name, func(t *testing.T) { require.NoError(t, cfg.ValidateProduction()) })
	}
}
