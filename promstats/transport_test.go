package promstats

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"github.com/qaexchange/notification"
	"github.com/qaexchange/notification/web"
)

// A transport tells what the test has made up.
type transport web.Stats

func (t transport) Stats() web.Stats { return web.Stats(t) }

// someTransport has a value of its own in every number, and a latency.
func someTransport() transport {
	var writes notification.HistogramRecorder
	writes.Record(3 * time.Millisecond)
	return transport{
		Connections: 101, Accepted: 102,
		Refused:  web.Refusals{BadRequest: 103, Origin: 104, Full: 105, Credentials: 106, Forbidden: 107, CursorGone: 108, Failed: 109, Elsewhere: 118},
		Closed:   map[web.Code]uint64{web.CodeReplaced: 110, 0: 111},
		FramesIn: 112, FramesOut: 113, BytesIn: 114, BytesOut: 115, Commands: 116, CommandErrors: 117,
		WriteLatency: writes.Snapshot(),
	}
}

func TestTransport(t *testing.T) {
	families := gather(t, NewTransportCollector("websocket", someTransport()))
	t.Run("every number is shown, with the transport's name", func(t *testing.T) {
		shown := map[float64]bool{}
		for _, f := range families {
			for _, m := range f.Metric {
				require.Equal(t, "websocket", label(m, "transport"))
				shown[math.Max(m.GetCounter().GetValue(), m.GetGauge().GetValue())] = true
			}
		}
		for n := 101.0; n <= 118; n++ {
			require.True(t, shown[n], "%v", n)
		}
	})
	t.Run("closed connections by code", func(t *testing.T) {
		codes := map[string]float64{}
		for _, m := range families["notification_web_closed_total"].Metric {
			codes[label(m, "code")] = m.GetCounter().GetValue()
		}
		require.Equal(t, map[string]float64{"4409": 110, "0": 111}, codes)
	})
	t.Run("writes as a histogram", func(t *testing.T) {
		require.EqualValues(t, 1, families["notification_web_write_latency_seconds"].Metric[0].GetHistogram().GetSampleCount())
	})
	t.Run("several can stand side by side", func(t *testing.T) {
		registry := prometheus.NewPedanticRegistry()
		for _, name := range []string{"websocket", "sse"} {
			require.NoError(t, registry.Register(NewTransportCollector(name, someTransport())))
		}
		families, err := registry.Gather()
		require.NoError(t, err)
		for _, f := range families {
			if strings.HasSuffix(f.GetName(), "_connections") {
				require.Len(t, f.Metric, 2)
			}
		}
	})
}
