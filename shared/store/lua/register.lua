-- Bring registrations in. ARGV order(JSON): entries {name = JSON}, replace_file (drop file entries not named here).
-- Returns the names that changed, and those of them that a file has taken over from HTTP.
local o = cjson.decode(ARGV[1])
local changed = {}
local taken_over = {}
local known = record(redis.call('HGETALL', K.models))

if o.replace_file then
  for name, raw in pairs(known) do
    local entry = entry_of(raw)
    if not o.entries[name] and entry and entry.source == 'file' then
      remove_model(name, 'file')
      changed[#changed + 1] = name
    end
  end
end
for name, raw in pairs(o.entries) do
  if known[name] ~= raw then
    local entry = entry_of(known[name])
    if o.replace_file and entry and entry.source ~= 'file' then
      taken_over[#taken_over + 1] = name
    end
    put_model(name, raw)
    changed[#changed + 1] = name
  end
end
return {changed, taken_over}
