-- wrk -s post.lua URL -- MODEL true|false KEY [logged]: one chat request of about 1 KB, over and over; `logged` asks
-- for a stream that can be come back to.
-- At the end it prints one line of JSON, because the text that wrk prints itself rounds.

local whole

function init(args)
  local model, stream, key, logged = args[1], args[2], args[3], args[4]
  local question = string.rep("Explain the difference between server-sent events and websockets. ", 14)
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Authorization"] = "Bearer " .. key
  if logged == "logged" then wrk.headers["x-deltaway-resumable"] = "true" end
  wrk.body = '{"model":"' .. model .. '","stream":' .. stream ..
    ',"messages":[{"role":"system","content":"You are a helpful assistant."},' ..
    '{"role":"user","content":"' .. question .. '"}]}'
  whole = wrk.format()
end

function request()
  return whole
end

function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\n{"requests":%d,"microseconds":%d,"bytes":%d,"p50":%d,"p99":%d,"worst":%d,' ..
    '"connect":%d,"read":%d,"write":%d,"status":%d,"timeout":%d}\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99), latency.max,
    e.connect, e.read, e.write, e.status, e.timeout))
end
