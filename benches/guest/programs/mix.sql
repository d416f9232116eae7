create table item (id integer primary key, name text, price real, kind integer);
create table sale (item integer, amount integer, day integer);
begin;
insert into item with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000)
    select i, 'item ' || (i * 7919 % 3001), (i * 37 % 1000) / 10.0, i % 17 from n;
insert into sale with recursive n(i) as (select 1 union all select i + 1 from n where i < 20000)
    select i * 31 % 3000 + 1, i % 9 + 1, i / 60 from n;
commit;
create index sale_item on sale (item);
create index item_name on item (name);
select kind, count(*), round(sum(price * amount), 1) from item join sale on sale.item = item.id
    group by kind order by 3 desc;
select count(*), max(name) from item where name like '%77%';
update item set price = price * 1.1 where id in (select item from sale where day between 100 and 200);
select day, sum(amount) s from sale group by day having s > 299 order by s desc, day limit 10;
delete from sale where amount = 5;
select round(avg(price), 3), (select count(*) from sale) from item;
