-- Publish one reading of one GPU and, as the single writer, its levels. A reading older than the stored one only
-- joins the history. ARGV order(JSON): id, boot, seq, age_ms, ttl_ms, fields (flat list), level {field = value}.
-- Returns {STORED|LATE|REPLAY, level seq}.
local o = cjson.decode(ARGV[1])
local gpu, level = key('gpu', o.id), key('gpu_level', o.id)
local last = redis.call('HMGET', gpu, 'boot', 'seq', 'ts_ms')
local old = record(redis.call('HGETALL', level))
local seq = tonumber(old.seq or '0')
if last[1] == o.boot and tonumber(last[2]) >= o.seq then return {'REPLAY', seq} end
local ts = NOW - o.age_ms
local late = last[3] and tonumber(last[3]) >= ts
local changed = false
for _, name in ipairs({'pressure', 'full', 'thermal'}) do
  if not late and old[name] ~= o.level[name] then
    changed = true
    o.level[name .. '_since_ms'] = int(ts)
  end
end
redis.call('SADD', K.gpus, o.id)
local flat = {'v', '1', 'type', 'gpu.sample', 'gpu', o.id, 'ts_ms', int(ts), 'age_ms', int(o.age_ms), 'seq', int(o.seq)}
for _, item in ipairs(o.fields) do flat[#flat + 1] = item end
if late then
  append(flat, {late = '1'})
else
  for _, name in ipairs({'pressure', 'full', 'thermal'}) do append(flat, {[name] = o.level[name]}) end
  if changed then append(flat, {level_changed = '1'}) end
end
redis.call('XADD', K.gpu_samples, 'MAXLEN', '~', KEEP.gpu_samples, '*', unpack(flat))
if late then return {'LATE', seq} end
-- Not of a late one: sent again it would count twice.
record_memory(o.id, o.fields, ts)
if changed then seq = seq + 1 end
o.level.seq = int(seq)
-- In the key without expiry: when the readings stop it is known since when.
o.level.read_ms = int(ts)
hset(level, o.level)
redis.call('DEL', gpu)
flat[#flat + 1] = 'boot'
flat[#flat + 1] = o.boot
redis.call('HSET', gpu, unpack(flat))
redis.call('PEXPIRE', gpu, int(o.ttl_ms))
return {'STORED', seq}
