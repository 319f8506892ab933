-- Arguments behind `--`: the file that holds the body, the bearer key, and how many answers end the run (0: time does).
local answered, limit = 0, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  wrk.body = file:read("*a")
  file:close()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. arguments[2]
  limit = tonumber(arguments[3])
  -- Without a limit nothing of Lua runs per answer.
  if limit == 0 then response = nil end
end

function response(status, headers, body)
  answered = answered + 1
  if answered >= limit then wrk.thread:stop() end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    "BENCH requests=%d us=%d bytes=%d status=%d timeout=%d socket=%d p50=%d p95=%d p99=%d max=%d\n",
    summary.requests, summary.duration, summary.bytes, errors.status, errors.timeout,
    errors.connect + errors.read + errors.write,
    latency:percentile(50), latency:percentile(95), latency:percentile(99), latency.max))
end
