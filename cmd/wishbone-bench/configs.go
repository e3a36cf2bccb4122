package main

// The configurations of what wishbone is measured beside. Each is as plain as its
// documentation has it: mutual TLS 1.3, one worker, no log of connections.

const envoyWest = `static_resources:
  listeners:
  - address: {socket_address: {address: {{.Local.Addr}}, port_value: {{.Local.Port}}}}
    filter_chains:
    - filters:
      - name: tunnel
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: tunnel
          cluster: peer
          tunneling_config: {hostname: "{{.Target}}"}
  clusters:
  - name: peer
    type: STATIC
    load_assignment:
      cluster_name: peer
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: {{.Remote.Addr}}, port_value: {{.Remote.Port}}}}}}]}]
    # The default of 1024 would refuse more idle connections than that.
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {allow_connect: true, initial_stream_window_size: 4194304, initial_connection_window_size: 16777216}}
    transport_socket:
      name: tls
      typed_config:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        common_tls_context:
          alpn_protocols: [h2]
          tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
          tls_certificates: [{certificate_chain: {filename: {{.Dir}}/west.pem}, private_key: {filename: {{.Dir}}/west.key}}]
          validation_context: {trusted_ca: {filename: {{.Dir}}/west.bundle.pem}}
`

const envoyEast = `static_resources:
  listeners:
  - address: {socket_address: {address: {{.Remote.Addr}}, port_value: {{.Remote.Port}}}}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            alpn_protocols: [h2]
            tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3}
            tls_certificates: [{certificate_chain: {filename: {{.Dir}}/east.pem}, private_key: {filename: {{.Dir}}/east.key}}]
            validation_context: {trusted_ca: {filename: {{.Dir}}/east.bundle.pem}}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: tunnel
          codec_type: HTTP2
          stream_idle_timeout: 0s
          http2_protocol_options: {allow_connect: true, initial_stream_window_size: 4194304, initial_connection_window_size: 16777216}
          upgrade_configs: [{upgrade_type: CONNECT}]
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {connect_matcher: {}}
                route: {cluster: target, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}
  clusters:
  - name: target
    type: STATIC
    circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
    load_assignment:
      cluster_name: target
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: {{.Target.Addr}}, port_value: {{.Target.Port}}}}}}]}]
`

const haproxyGlobal = `global
  nbthread 1
  maxconn 9000
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
listen tunnel
`

const haproxyWest = haproxyGlobal + `  bind {{.Local}}
  server east {{.Remote}} ssl crt {{.Dir}}/west.both.pem ca-file {{.Dir}}/west.bundle.pem verify required
`

const haproxyEast = haproxyGlobal + `  bind {{.Remote}} ssl crt {{.Dir}}/east.both.pem ca-file {{.Dir}}/east.bundle.pem verify required
  server target {{.Target}}
`

const stunnelGlobal = `foreground = yes
pid =
debug = err
sslVersionMin = TLSv1.3
CAfile = {{.Dir}}/west.bundle.pem
verifyChain = yes
[tunnel]
`

const stunnelWest = stunnelGlobal + `client = yes
accept = {{.Local}}
connect = {{.Remote}}
cert = {{.Dir}}/west.both.pem
`

const stunnelEast = stunnelGlobal + `accept = {{.Remote}}
connect = {{.Target}}
cert = {{.Dir}}/east.both.pem
`

const nebulaWest = `pki: {ca: {{.Dir}}/nebula-ca.crt, cert: {{.Dir}}/nebula-west.crt, key: {{.Dir}}/nebula-west.key}
static_host_map: {"10.9.0.2": ["{{.Remote}}"]}
lighthouse: {am_lighthouse: false, hosts: ["10.9.0.2"]}
listen: {host: {{.WestOuter}}, port: {{.Local.Port}}}
tun: {dev: nebula1, mtu: 1300}
logging: {level: error}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`

const nebulaEast = `pki: {ca: {{.Dir}}/nebula-ca.crt, cert: {{.Dir}}/nebula-east.crt, key: {{.Dir}}/nebula-east.key}
lighthouse: {am_lighthouse: true}
listen: {host: {{.EastOuter}}, port: {{.Remote.Port}}}
tun: {dev: nebula1, mtu: 1300}
logging: {level: error}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`
