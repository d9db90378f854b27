package natslog

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/natslog/internal/natstest"
	"github.com/stretchr/testify/require"
)

// certificate writes a certificate for 127.0.0.1 and its key, signed by the parent or
// by itself, and returns their files.
func certificate(t *testing.T, dir, name string, parent *x509.Certificate, parentKey *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign
		parent, parentKey = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, parentKey)
	require.NoError(t, err)
	private, err := x509.MarshalECPrivateKey(key)
	require.NoError(t, err)
	c, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	certFile, keyFile := filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}), 0o600))
	return c, key, certFile, keyFile
}

// The configuration of OPERATING.md, with TLS on both sides, lets each do what it must
// and no more.
func TestPermissions(t *testing.T) {
	dir := t.TempDir()
	ca, caKey, caFile, _ := certificate(t, dir, "ca", nil, nil)
	_, _, serverCert, serverKey := certificate(t, dir, "server", ca, caKey)
	_, _, clientCert, clientKey := certificate(t, dir, "client", ca, caKey)
	conf, err := os.ReadFile(filepath.Join("testdata", "secure", "nats.conf"))
	require.NoError(t, err)
	as := func(user string) []nats.Option {
		return []nats.Option{
			nats.RootCAs(caFile), nats.ClientCert(clientCert, clientKey), nats.Timeout(natstest.Patience),
			nats.UserInfo(user, user), nats.CustomInboxPrefix("_INBOX." + user),
		}
	}
	s := natstest.Start(t, natstest.Config{
		// A busy machine needs longer than two seconds for a handshake.
		More: strings.NewReplacer("CERT", serverCert, "KEY", serverKey, `"CA"`, `"`+caFile+`"`, "NAME", "log", "verify: true", "timeout: 120, verify: true").Replace(string(conf)) +
			"authorization { timeout: 120 }\n",
		NATS: as("operator"),
	})
	cfg := func(user string) Config {
		return Config{URL: s.URL, NATS: as(user), Name: "log", Partitions: 2, MaxBytes: 4 << 20}
	}
	refused := func(t *testing.T, nc *nats.Conn, subject string) {
		t.Helper()
		require.NoError(t, nc.PublishRequest(subject, nc.NewInbox(), []byte("{}"))) // nobody waits for an answer that cannot come
		natstest.Eventually(t, subject+" is refused", func() bool {
			return nc.LastError() != nil && strings.Contains(nc.LastError().Error(), "ermissions") && strings.Contains(nc.LastError().Error(), subject)
		})
	}

	t.Run("without a certificate, or without a password, nobody gets in", func(t *testing.T) {
		_, err := Open(patient(t), Config{URL: s.URL, NATS: []nats.Option{nats.RootCAs(caFile), nats.UserInfo("engine", "engine")}})
		require.Error(t, err)
		_, err = Open(patient(t), Config{URL: s.URL, NATS: []nats.Option{nats.RootCAs(caFile), nats.ClientCert(clientCert, clientKey)}})
		require.Error(t, err)
	})

	t.Run("who publishes cannot make the streams", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := Open(ctx, cfg("engine"))
		require.Error(t, err)
	})

	t.Run("who sets up makes them, and cannot publish", func(t *testing.T) {
		l := open(t, cfg("setup"))
		refused(t, l.bulk.nc, "log.P1.0")
		refused(t, l.bulk.nc, "$JS.API.STREAM.DELETE.log_P1_0")
	})

	t.Run("who publishes does, and cannot read or delete", func(t *testing.T) {
		l := open(t, cfg("engine"))
		p := publisher(t, l, PublisherConfig{})
		for lane := range notification.Priority(4) {
			require.NoError(t, p.PublishWait(patient(t), note("a"+lane.String(), notification.AllUsers, lane)))
		}
		refused(t, l.bulk.nc, "$JS.API.CONSUMER.CREATE.log_P1_0")
		refused(t, l.bulk.nc, "$JS.API.STREAM.MSG.GET.log_P1_0")
		refused(t, l.bulk.nc, "$JS.API.STREAM.DELETE.log_P1_0")
		refused(t, l.bulk.nc, "$JS.API.STREAM.UPDATE.log_P1_0")
		_, err := l.bulk.nc.SubscribeSync("log.>")
		require.NoError(t, err)
		natstest.Eventually(t, "it cannot listen", func() bool {
			return strings.Contains(fmt.Sprint(l.bulk.nc.LastError()), `Subscription to "log.>"`)
		})
	})

	t.Run("who reads does, and cannot make or delete streams", func(t *testing.T) {
		l := open(t, cfg("edge"))
		r, err := l.NewReader(Position{})
		require.NoError(t, err)
		defer r.Close()
		got := make(map[string]int)
		for range 8 { // each partition has its copy
			a, _, err := r.Next(patient(t))
			require.NoError(t, err)
			got[strings.Clone(a.ID())]++
		}
		require.Equal(t, map[string]int{"aP0": 2, "aP1": 2, "aP2": 2, "aP3": 2}, got)
		refused(t, l.bulk.nc, "$JS.API.STREAM.CREATE.more")
		refused(t, l.bulk.nc, "$JS.API.STREAM.DELETE.log_P1_0")
		refused(t, l.bulk.nc, "$JS.API.STREAM.UPDATE.log_P1_0")
		_, err = l.bulk.js.Publish(patient(t), l.subject(notification.P1, 0), nil)
		require.NoError(t, err, "blocks without entries")
		_, err = l.bulk.js.Publish(patient(t), "$KV.log_epoch.epoch", []byte("another"))
		require.NoError(t, err, "when a stream has lost its tail")
	})

	t.Run("nobody hears what another is answered", func(t *testing.T) {
		l := open(t, cfg("engine"))
		_, err := l.bulk.nc.SubscribeSync("_INBOX.edge.>")
		require.NoError(t, err)
		natstest.Eventually(t, "it cannot listen", func() bool { return strings.Contains(fmt.Sprint(l.bulk.nc.LastError()), "_INBOX.edge.>") })
	})

	t.Run("the operator may do everything but purge", func(t *testing.T) {
		js := natstest.JetStream(t, s.Connect())
		stream, err := js.Stream(patient(t), "log_P1_0")
		require.NoError(t, err)
		require.Error(t, stream.Purge(patient(t)))
		require.NoError(t, js.DeleteStream(patient(t), "log_P1_0"))
	})
}
